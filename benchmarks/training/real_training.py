r"""Training on a real model and real texts, with the parameters of ``base`` and of ``tuned``.

    python benchmarks/training/real_training.py --model data/06_models/demo/quantized_model \
        --pairs data/03_primary/base/filtered_pairs.jsonl --pool data/01_raw/demo/qa_pairs.jsonl \
        --folder /tmp/real

Kedro runs the product's pipeline ``sft`` on a 4-bit model; both modes hold out the same share of
the pairs and train side by side. Their own held-out losses are of different tokens, with and
without the questions, so ``compare_adapters.py`` then measures both adapters alike. The folder
keeps curves, adapters and reports. ``--set MODE:NAME=VALUE`` changes a parameter below ``sft``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.recording import print_table, record
from benchmarks.harness.sides import (
    Side,
    apply_settings,
    choose,
    make_parser,
    run_job,
    run_side,
    working_folder,
    write_result,
)
from benchmarks.training.bench_training import ON_CPU

BOTH: dict[str, Any] = {
    "eval_fraction": 0.05,
    "training.eval_strategy": "steps",
    "training.eval_steps": 50,
    "training.report_to": [],
}
MODES: dict[str, Side] = {mode: {"changes": BOTH} for mode in ("base", "tuned")}
COLUMNS = ("steps", "eval_loss_before", "eval_loss_after", "tokens_per_second", "train_seconds")


def train(job: dict[str, Any], path: Path) -> None:
    """Train in one mode and write the stage's reports to ``path``."""
    folder, changes = Path(job["folder"]), job["changes"]
    if changes.get("backend", "unsloth") == "unsloth":
        import unsloth  # noqa: F401  # before transformers, which it patches
    from kedro_datasets.json import JSONDataset

    from benchmarks.harness.kedro_runs import run_pipeline
    from ja_instruct.datasets import AdapterDataset, JSONLinesDataset, QuantizedModelDataset
    from ja_instruct.pipelines import sft

    changes = {"checkpoint_dir": str(folder / "checkpoints"), **changes}
    catalog = run_pipeline(
        sft.create_pipeline(),
        {
            "quantized_model": QuantizedModelDataset(filepath=job["model"]),
            "filtered_pairs": JSONLinesDataset(filepath=job["pairs"]),
            "qa_pairs": JSONLinesDataset(filepath=job["pool"]),
            "eval_dataset": JSONLinesDataset(filepath=folder / "eval_dataset.jsonl"),
            "adapter": AdapterDataset(filepath=folder / "adapter"),
            # Kedro releases from memory what a later node has read
            "train_history": JSONDataset(filepath=str(folder / "train_history.json")),
        },
        environment=job["mode"],
        changes={f"sft.{name}": value for name, value in changes.items()},
    )
    write_result(path, {name: catalog[name].load() for name in ("train_metrics", "train_history")})


def compare(modes: list[str], model: Path, folder: Path, device: str) -> dict[str, Any]:
    """Return the losses of all adapters on the same held-out samples."""
    result = folder / "adapters.json"
    command = [sys.executable, str(Path(__file__).with_name("compare_adapters.py"))]
    # both modes train with the recipe's prompt
    samples = folder / modes[0] / "eval_dataset.jsonl"
    command += ["--device", device, "--model", str(model), "--samples", str(samples)]
    command += ["--result", str(result)]
    for mode in modes:
        command += ["--adapter", f"{mode}={folder / mode / 'adapter'}"]
    subprocess.run(command, check=True)
    compared: dict[str, Any] = json.loads(result.read_text("utf-8"))
    return compared


def main() -> None:
    """Train in both modes, compare, print and keep the figures."""
    parser = make_parser(__doc__, [], MODES, seconds=3600)
    parser.add_argument("--pairs", type=Path, required=True, help="filtered_pairs.jsonl")
    parser.add_argument("--pool", type=Path, required=True, help="input and output, JSON Lines")
    options = parser.parse_args()
    modes = choose(options.sides, MODES)
    on_cpu = ON_CPU if options.device == "cpu" else {}
    known = {mode: {"changes": {**BOTH, **on_cpu}} for mode in MODES}
    sides = apply_settings(known, options.set, MODES["base"])
    with working_folder(options) as folder:

        def run(mode: str) -> dict[str, Any]:
            job = {
                "mode": mode,
                "folder": str(folder / mode),
                "model": str(options.model),
                "pairs": str(options.pairs.resolve()),
                "pool": str(options.pool.resolve()),
                **sides[mode],
            }
            return run_side(Path(__file__), job, folder, mode, options.seconds)

        with ThreadPoolExecutor() as pool:
            results = dict(zip(modes, pool.map(run, modes), strict=True))
        done = [mode for mode, one in results.items() if "train_metrics" in one]
        summaries = {mode: results[mode]["train_metrics"]["summary"] for mode in done}
        print_table(summaries, {column: column for column in COLUMNS})
        compared = compare(done, options.model, folder, options.device) if done else {}
    result = {
        "ratio": compared.get("ratio"),
        "model": options.model.name,
        "modes": summaries,
        "same_samples": compared.get("losses"),
        "curves": {mode: results[mode]["train_history"] for mode in done},
    }
    record("real_training", result)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].endswith(".job.json"):
        run_job(train)
    else:
        main()
