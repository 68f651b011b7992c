r"""A real model through quantization and training, as the recipe has it and in the better mode.

    python benchmarks/training/real_training.py --base-model data/06_models/demo/base_model \
        --pairs data/03_primary/base/filtered_pairs.jsonl --pool data/01_raw/demo/qa_pairs.jsonl \
        --folder /tmp/real

The product's pipelines, run by Kedro with the parameters of ``conf/base`` and ``conf/tuned``, but
that both hold out the same share of the pairs. Both modes are trained side by side, each in a
process of its own. Their own held-out losses are of different tokens, with and without the
questions: so ``compare_adapters.py`` then asks both adapters the same. The table has a line a mode;
curves, adapters and reports stay in the folder.

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

from benchmarks.harness.recording import record
from benchmarks.harness.sides import run_side, write_result

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


def do_job(job: dict[str, Any], path: Path) -> None:
    """Quantize the model, or train in one mode; the pipelines' outputs go to the job's folder."""
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

    def report(name: str) -> JSONDataset:
        return JSONDataset(filepath=str(folder / f"{name}.json"), save_args={"indent": 2})

    quantized = QuantizedModelDataset(filepath=folder.parent / "nf4")
    if job["mode"] == "quantization":
        run_pipeline(
            quantization.create_pipeline(),
            {
                "base_model": ModelDirectoryDataset(
                    filepath=job["base_model"], model_id=job["model_id"]
                ),
                "quantized_model": quantized,
                "quantization_report": report("quantization_report"),
            },
            changes=changes,
        )
        write_result(path, json.loads((folder / "quantization_report.json").read_text("utf-8")))
        return
    run_pipeline(
        sft.create_pipeline(),
        {
            "quantized_model": quantized,
            "filtered_pairs": JSONLinesDataset(filepath=job["pairs"]),
            "qa_pairs": JSONLinesDataset(filepath=job["pool"]),
            "eval_dataset": JSONLinesDataset(filepath=folder / "eval_dataset.jsonl"),
            "adapter": AdapterDataset(filepath=folder / "adapter"),
            "train_metrics": report("train_metrics"),
            "train_history": report("train_history"),
        },
        environment=job["mode"],
        changes={"sft.checkpoint_dir": str(folder / "checkpoints"), **changes},
    )
    result = {
        name: json.loads((folder / f"{name}.json").read_text("utf-8"))
        for name in ("train_metrics", "train_history")
    }
    write_result(path, result)


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
    """Run one stage in a process of its own and return what it says."""
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


def compare(modes: list[str], options: argparse.Namespace) -> dict[str, Any] | None:
    """Return the losses of all adapters on the same held-out samples; None where that failed."""
    known = [mode for mode in modes if (options.folder / mode / "adapter").is_dir()]
    if not known:
        return None
    command = [sys.executable, str(HERE / "compare_adapters.py"), "--device", options.device]
    command += ["--model", str(options.folder / "nf4")]
    # the recipe's prompt is the training prompt of both
    command += ["--samples", str(options.folder / known[0] / "eval_dataset.jsonl")]
    command += ["--result", str(options.folder / "adapters.json")]
    for mode in known:
        command += ["--adapter", f"{mode}={options.folder / mode / 'adapter'}"]
    done = subprocess.run(command, cwd=HERE, check=False)
    if done.returncode:
        return None
    compared: dict[str, Any] = json.loads((options.folder / "adapters.json").read_text("utf-8"))
    return compared


def print_table(summaries: dict[str, dict[str, Any]]) -> None:
    """Print a line a mode."""
    columns = ("steps", "train_loss", "eval_loss_before", "eval_loss_after", "tokens_per_second")
    columns = (*columns, "train_seconds", "peak_gpu_memory_gb")
    print(f"\n{'':<8}" + "".join(f"{column:>20}" for column in columns))
    for mode, summary in summaries.items():
        print(f"{mode:<8}" + "".join(f"{summary.get(column, '-')!s:>20}" for column in columns))


def main() -> None:
    """Quantize, train in both modes, compare, print and keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base-model", type=Path, required=True, help="16-bit directory")
    parser.add_argument("--model-id", help="its publisher's name")
    parser.add_argument("--pairs", type=Path, required=True, help="filtered_pairs.jsonl")
    parser.add_argument("--pool", type=Path, required=True, help="input and output, JSON Lines")
    parser.add_argument("--folder", type=Path, required=True, help="where everything goes")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--one-by-one", action="store_true", help="not side by side")
    parser.add_argument("--set", action="append", default=[], metavar="[MODE:]NAME=VALUE")
    parser.add_argument("--seconds", type=float, default=3600, help="a stage's time at most")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    for name in ("base_model", "pairs", "pool", "folder"):
        setattr(options, name, getattr(options, name).resolve())
    options.folder.mkdir(parents=True, exist_ok=True)
    report = {} if (options.folder / "nf4").is_dir() else run_mode("quantization", options)
    modes = options.modes.split(",")
    with ThreadPoolExecutor(1 if options.one_by_one else len(modes)) as pool:
        results = dict(
            zip(modes, pool.map(lambda mode: run_mode(mode, options), modes), strict=True)
        )
    summaries = {
        mode: result["train_metrics"]["summary"]
        for mode, result in results.items()
        if "train_metrics" in result
    }
    print_table(summaries)
    compared = compare(modes, options)
    result = {
        "ratio": compared["ratio"] if compared else None,
        "model": options.model_id or options.base_model.name,
        "quantization": report.get("summary"),
        "modes": summaries,
        "same_samples": compared["losses"] if compared else None,
        "curves": {
            mode: [
                {key: entry[key] for key in ("step", "loss", "eval_loss") if key in entry}
                for entry in one["train_history"]
                if "loss" in entry or "eval_loss" in entry
            ]
            for mode, one in results.items()
            if "train_history" in one
        },
    }
    record("real_training", result)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1].endswith(".job.json"):
        do_job(json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2]))
    else:
        main()
