"""A training in a process of its own: ``training_to_be_killed.py JOB``; see test_resuming."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from datasets import Dataset
from transformers import Trainer

from ja_instruct.datasets import AdapterDataset
from ja_instruct.models.directory import ModelDirectory
from ja_instruct.pipelines.sft.nodes import train
from ja_instruct.pipelines.sft.parameters import SftParameters


def main(path: Path) -> None:
    """Train on the job's samples, and save the adapter to the job's ``adapter``.

    The checkpoint of its ``step`` has only the adapter: the process kills itself while it saves.
    """
    job = json.loads(path.read_text("utf-8"))

    def save(self: Trainer, output_dir: str) -> None:
        if self.state.global_step == job.get("step"):
            os.kill(os.getpid(), signal.SIGKILL)
        keep(self, output_dir)

    keep = Trainer._save_optimizer_and_scheduler
    Trainer._save_optimizer_and_scheduler = save
    artifact, _, _ = train(
        ModelDirectory(Path(job["model"]), job["model_id"], provenance=job["provenance"]),
        Dataset.from_list(job["samples"]),
        Dataset.from_list(job["held_out"]),
        SftParameters(**job["parameters"]),
    )
    AdapterDataset(filepath=job["adapter"]).save(artifact)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
