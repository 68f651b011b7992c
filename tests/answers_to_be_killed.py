"""Answers cut short: ``python answers_to_be_killed.py JOB``; see test_resuming."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from datasets import Dataset

from ja_instruct.models.directory import ModelDirectory
from ja_instruct.pipelines.inference.nodes import answer_tasks
from ja_instruct.pipelines.inference.parameters import InferenceParameters
from ja_instruct.prompts import PromptParameters
from ja_instruct.tables.answer_store import AnswerStore


def main(path: Path) -> None:
    """Answer the job's tasks; after ``kept`` answers half a line is written, and nothing more."""
    job = json.loads(path.read_text("utf-8"))
    store = AnswerStore(Path(job["store"]))

    def append(self: AnswerStore, key: str, answer: dict[str, object]) -> None:
        if len(self) == job["kept"]:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "answer": answer})[:-20])
            os.kill(os.getpid(), signal.SIGKILL)
        keep(self, key, answer)

    keep = AnswerStore.append
    AnswerStore.append = append
    model, adapter = (
        ModelDirectory(Path(one["path"]), "model", provenance=one["provenance"])
        for one in (job["model"], job["adapter"])
    )
    answer_tasks(
        Dataset.from_list(job["prompts"]),
        store,
        model,
        adapter,
        PromptParameters(**job["texts"]),
        InferenceParameters(**job["parameters"]),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
