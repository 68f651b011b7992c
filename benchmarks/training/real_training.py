r"""A real model through quantization and training, with the parameters of ``base`` and ``tuned``.

    python benchmarks/training/real_training.py --base-model data/06_models/demo/base_model \
        --pairs data/03_primary/base/filtered_pairs.jsonl --pool data/01_raw/demo/qa_pairs.jsonl \
        --folder /tmp/real

Kedro runs the product's pipelines; both modes hold out the same share of the pairs. They train side
by side, each in a process of its own. Their own held-out losses are of different tokens, with
and without the questions, so ``compare_adapters.py`` then measures both adapters alike. The folder
keeps curves, adapters and reports.

``--set NAME=VALUE`` changes a parameter of both modes, ``--set tuned:NAME=VALUE`` of one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.recording import print_table, record
from benchmarks.harness.sides import run_job, run_side, write_result

HERE = Path(__file__).parent
MODES = ("base", "tuned")
BOTH: dict[str, Any] = {
    "sft.eval_fraction": 0.05,
    "sft.training.eval_strategy": "steps",
    "sft.training.eval_steps": 50,
    "sft.training.report_to": [],
}
ON_CPU: dict[str, Any] = {
    "quantization.device": "cpu",
    "sft.device": "cpu",
    "sft.backend": "peft",
    "sft.training.bf16": False,
    "sft.training.optim": "adamw_torch",
    "sft.training.gradient_checkpointing": False,
}
COLUMNS = ("steps", "train_loss", "eval_loss_before", "eval_loss_after", "tokens_per_second")
COLUMNS = (*COLUMNS, "train_seconds", "peak_gpu_memory_gb")


def do_job(job: dict[str, Any], path: Path) -> None:
    """Quantize the model, or train in one mode, and write the stage's reports to ``path``."""
    folder, changes = Path(job["folder"]), job["changes"]
    if job["mode"] != "quantization" and changes.get("sft.backend", "unsloth") == "unsloth":
        import unsloth  # noqa: F401  # before transformers, which it patches
    from kedro_datasets.json import JSONDataset

    from benchmarks.harness.kedro_runs import run_pipeline
    from ja_instruct.datasets import (
        AdapterDataset,
        JSONLinesDataset,
        ModelDirectoryDataset,
        QuantizedModelDataset,
    )
    from ja_instruct.pipelines import quantization, sft

    quantized = QuantizedModelDataset(filepath=folder.parent / "nf4")
    if job["mode"] == "quantization":
        source = ModelDirectoryDataset(filepath=job["base_model"], model_id=job["model_id"])
        catalog = run_pipeline(
            quantization.create_pipeline(),
            {"base_model": source, "quantized_model": quantized},
            changes=changes,
        )
        write_result(path, catalog["quantization_report"].load())
        return
    catalog = run_pipeline(
        sft.create_pipeline(),
        {
            "quantized_model": quantized,
            "filtered_pairs": JSONLinesDataset(filepath=job["pairs"]),
            "qa_pairs": JSONLinesDataset(filepath=job["pool"]),
            "eval_dataset": JSONLinesDataset(filepath=folder / "eval_dataset.jsonl"),
            "adapter": AdapterDataset(filepath=folder / "adapter"),
            # Kedro releases from memory what a later node has read
            "train_history": JSONDataset(filepath=str(folder / "train_history.json")),
        },
        environment=job["mode"],
        changes={"sft.checkpoint_dir": str(folder / "checkpoints"), **changes},
    )
    write_result(path, {name: catalog[name].load() for name in ("train_metrics", "train_history")})


def changes_of(mode: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what differs from a mode's parameters."""
    changes = {**BOTH, **(ON_CPU if options.device == "cpu" else {})}
    for setting in options.set:
        where, colon, rest = setting.partition(":")
        name, equals, value = (rest if colon else setting).partition("=")
        if not equals:
            sys.exit(f"--set {setting}: give NAME=VALUE or MODE:NAME=VALUE")
        if not colon or where == mode:
            changes[name] = yaml.safe_load(value)
    return {
        name: value
        for name, value in changes.items()
        if name.startswith("quantization.") == (mode == "quantization")
    }


def run_mode(mode: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one stage in a process of its own and return its result."""
    job = {
        "mode": mode,
        "folder": str(options.folder / mode),
        "base_model": str(options.base_model),
        "model_id": options.model_id or options.base_model.name,
        "pairs": str(options.pairs),
        "pool": str(options.pool),
        "changes": changes_of(mode, options),
    }
    return run_side(Path(__file__), job, options.folder, mode, options.seconds)


def compare(modes: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Return the losses of all adapters on the same held-out samples; empty if that failed."""
    known = [mode for mode in modes if (options.folder / mode / "adapter").is_dir()]
    if not known:
        return {}
    command = [sys.executable, str(HERE / "compare_adapters.py"), "--device", options.device]
    command += ["--model", str(options.folder / "nf4")]
    # both modes train with the recipe's prompt
    command += ["--samples", str(options.folder / known[0] / "eval_dataset.jsonl")]
    command += ["--result", str(options.folder / "adapters.json")]
    for mode in known:
        command += ["--adapter", f"{mode}={options.folder / mode / 'adapter'}"]
    if subprocess.run(command, check=False).returncode:
        return {}
    compared: dict[str, Any] = json.loads((options.folder / "adapters.json").read_text("utf-8"))
    return compared


def main() -> None:
    """Quantize, train in both modes, compare, print and keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base-model", type=Path, required=True, help="16-bit directory")
    parser.add_argument("--model-id", help="the name its publisher gives it")
    parser.add_argument("--pairs", type=Path, required=True, help="filtered_pairs.jsonl")
    parser.add_argument("--pool", type=Path, required=True, help="input and output, JSON Lines")
    parser.add_argument("--folder", type=Path, required=True, help="where all outputs go")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--one-by-one", action="store_true", help="not side by side")
    parser.add_argument("--set", action="append", default=[], metavar="[MODE:]NAME=VALUE")
    parser.add_argument("--seconds", type=float, default=3600, help="time limit of a stage")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    for name in ("base_model", "pairs", "pool", "folder"):
        setattr(options, name, getattr(options, name).resolve())
    options.folder.mkdir(parents=True, exist_ok=True)
    report = {} if (options.folder / "nf4").is_dir() else run_mode("quantization", options)
    modes = options.modes.split(",")
    with ThreadPoolExecutor(1 if options.one_by_one else len(modes)) as pool:
        stages = pool.map(lambda mode: run_mode(mode, options), modes)
        results = {
            mode: one for mode, one in zip(modes, stages, strict=True) if "train_metrics" in one
        }
    summaries = {mode: one["train_metrics"]["summary"] for mode, one in results.items()}
    print_table(summaries, {column: column for column in COLUMNS})
    compared = compare(modes, options)
    result = {
        "ratio": compared.get("ratio"),
        "model": options.model_id or options.base_model.name,
        "quantization": report.get("summary"),
        "modes": summaries,
        "same_samples": compared.get("losses"),
        "curves": {
            mode: [
                {key: entry[key] for key in ("step", "loss", "eval_loss") if key in entry}
                for entry in one["train_history"]
                if "loss" in entry or "eval_loss" in entry
            ]
            for mode, one in results.items()
        },
    }
    record("real_training", result)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1].endswith(".job.json"):
        run_job(do_job)
    else:
        main()
