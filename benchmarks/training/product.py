"""Training by the product's node ``train``, with the parameters of an environment.

    python benchmarks/training/product.py JOB RESULT

is what ``bench_training.py`` starts. The node is run by Kedro, on samples that are given; what it
would save stays in memory. Its trainer is timed from outside, by a callback among transformers'
defaults, which also reads the tokens of each step as the product logs them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kedro.io import MemoryDataset

from benchmarks.harness.kedro_runs import overridden, read_configuration, run_pipeline
from benchmarks.harness.peak_memory import PeakMemory
from benchmarks.harness.sides import write_result

NODE = "train"
#: What would write or evaluate meanwhile, and hide single steps. Not every version has all of it.
QUIET = {
    "eval_fraction": 0.0,
    "resume": False,
    "training.logging_steps": 1,
    "training.eval_strategy": "no",
    "training.early_stopping_patience": None,
    "training.save_strategy": "no",
    "training.report_to": [],
}


def train(job: dict[str, Any], path: Path) -> None:
    """Train on the job's samples and write what was measured, step by step, to ``path``."""
    configuration = read_configuration(job["environment"])["parameters"]
    changes = changes_of(job, configuration["sft"])
    parameters = overridden(configuration, changes)["sft"]
    if parameters["backend"] == "unsloth":
        import unsloth  # noqa: F401  # before transformers, which it patches
    from datasets import Dataset
    from transformers import trainer as transformers_trainer

    from benchmarks.training.step_clock import StepClock
    from ja_instruct.datasets import QuantizedModelDataset
    from ja_instruct.pipelines.sft import create_pipeline

    if job["memory_gb"] is not None:
        limit_memory(job["memory_gb"])
    samples = json.loads(Path(job["samples"]).read_text("utf-8"))
    dataset = Dataset.from_list(
        [{"prompt": p, "completion": a, "source": "filtered_pairs"} for p, a in samples]
    )
    result: dict[str, Any] = {"parameters": parameters}
    with PeakMemory() as memory:

        def report() -> None:
            result.update(
                step_seconds=clock.step_seconds(),
                losses=clock.losses,
                tokens=clock.tokens(),
                memory=memory.figures(),
            )
            write_result(path, result)

        started = time.perf_counter()
        clock = StepClock(
            report, lambda: result.update(load_seconds=round(time.perf_counter() - started, 1))
        )
        # classes, by its type; a trainer takes instances too
        callbacks: list[Any] = transformers_trainer.DEFAULT_CALLBACKS
        callbacks.append(clock)
        catalog = run_pipeline(
            create_pipeline().filter(node_names=[NODE]),
            {
                "quantized_model": QuantizedModelDataset(filepath=job["model"]),
                "train_dataset": MemoryDataset(dataset, copy_mode="assign"),
                "eval_dataset": MemoryDataset(dataset.select([]), copy_mode="assign"),
            },
            environment=job["environment"],
            changes=changes,
        )
        report()
    result["metrics"] = catalog["train_metrics"].load()
    write_result(path, result)


def changes_of(job: dict[str, Any], section: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters to change, by their whole names."""

    def is_known(name: str) -> bool:
        first, _, rest = name.partition(".")
        return first in section and (not rest or rest in section[first])

    changes = {name: value for name, value in QUIET.items() if is_known(name)}
    changes |= {"training.max_steps": job["steps"], "checkpoint_dir": job["folder"]}
    return {f"sft.{name}": value for name, value in (changes | job["changes"]).items()}


def limit_memory(gb: float) -> None:
    """Let PyTorch take no more than so many GB (1e9 bytes) of the GPU."""
    import torch

    if torch.cuda.is_available():
        share = gb * 1e9 / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(share, 1.0))


def main() -> None:
    """Do one job."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("job", type=Path)
    parser.add_argument("result", type=Path)
    options = parser.parse_args()
    train(json.loads(options.job.read_text("utf-8")), options.result)


if __name__ == "__main__":
    main()
