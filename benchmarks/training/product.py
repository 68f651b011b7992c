"""Training by the product's node ``train``, with the parameters of an environment.

``bench_training.py`` starts it. A callback among transformers' defaults times the steps.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from kedro.io import MemoryDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.kedro_runs import overridden, read_configuration, run_pipeline
from benchmarks.harness.memory import PeakMemory, limit_memory
from benchmarks.harness.sides import run_job, write_result

#: Nothing is saved or evaluated during the measured steps, and each step is logged.
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
    """Train on the job's samples and write the figures to ``path`` after each step."""
    configuration = read_configuration(job["environment"])["parameters"]
    changes = {
        **QUIET,
        "training.max_steps": job["steps"],
        "checkpoint_dir": job["folder"],
        **job["changes"],
    }
    changes = {f"sft.{name}": value for name, value in changes.items()}
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
        # annotated as classes, but a trainer also accepts instances
        callbacks: list[Any] = transformers_trainer.DEFAULT_CALLBACKS
        callbacks.append(clock)
        run_pipeline(
            create_pipeline().filter(node_names=["train"]),
            {
                "quantized_model": QuantizedModelDataset(filepath=job["model"]),
                "train_dataset": MemoryDataset(dataset, copy_mode="assign"),
                "eval_dataset": MemoryDataset(dataset.select([]), copy_mode="assign"),
            },
            environment=job["environment"],
            changes=changes,
        )
        report()


if __name__ == "__main__":
    run_job(train)
