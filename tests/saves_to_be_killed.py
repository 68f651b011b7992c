"""Kill the saving of each output of a catalog at chosen moments, and print what is wrong after it.

Usage: ``python saves_to_be_killed.py FOLDER CATALOG``. The catalog is a JSON object of persisted
outputs alone, which are saved below the folder.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from kedro.io import AbstractDataset, DataCatalog
from kedro_datasets import json as json_datasets
from kedro_datasets import plotly, text
from plotly.graph_objects import Figure

from ja_instruct import datasets
from ja_instruct.datasets import hub_publication_dataset
from ja_instruct.datasets.model_artifact_dataset import ModelArtifactDataset
from ja_instruct.hooks.outputs import discard_unfinished
from ja_instruct.models.directory import ModelArtifact
from ja_instruct.retrieval.colbert import EncodedQuestions
from ja_instruct.retrieval.index import RetrievalIndex

ROWS = 3000
REPOSITORY = "owner/name"
FIRST_BYTE, HALF, LAST_BYTE, RENAME = MOMENTS = (
    "first byte",
    "half of the largest file",
    "last byte of the largest file",
    "rename",
)


def model(version: str) -> ModelArtifact:
    def save(folder: Path, **_: Any) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_bytes(version.encode() * ROWS)

    return ModelArtifact(
        SimpleNamespace(save_pretrained=save, peft_config={}),
        SimpleNamespace(
            save_pretrained=lambda folder: (folder / "tokenizer.json").write_text("{}")
        ),
        {"version": version},
        "card",
    )


def index(version: str) -> RetrievalIndex:
    questions = tuple(f"{version}{number}" for number in range(ROWS))
    lengths = torch.ones(ROWS, dtype=torch.int32)
    encoded = EncodedQuestions(questions, torch.zeros(ROWS, 2), lengths, 8, (False,) * ROWS)
    return RetrievalIndex("colbert", questions, encoded)


# what each kind of dataset saves, by version; the first kind that fits counts
SAMPLES = {
    datasets.JSONLinesDataset: lambda version: Dataset.from_list([{"a": version}] * ROWS),
    json_datasets.JSONDataset: lambda version: [version] * ROWS,
    text.TextDataset: lambda version: version * ROWS,
    plotly.JSONDataset: lambda version: Figure().add_scatter(x=[version] * ROWS),
    ModelArtifactDataset: model,
    datasets.RetrievalIndexDataset: index,
    datasets.EncodingCacheDataset: index,
    datasets.GGUFFileDataset: lambda version: SimpleNamespace(
        write=lambda path: path.write_bytes(b"GGUF" + version.encode() * ROWS)
    ),
    datasets.HubPublicationDataset: lambda version: SimpleNamespace(
        upload=lambda repo_id, private: {"repo_id": repo_id, "url": version * ROWS}
    ),
}


def save(dataset: AbstractDataset[Any, Any], version: str) -> None:
    data = next(make for kind, make in SAMPLES.items() if isinstance(dataset, kind))(version)
    if isinstance(dataset, datasets.EncodingCacheDataset):
        dataset.load().write(data)
    else:
        dataset.save(data)


def content_of(path: Path) -> dict[str, bytes]:
    """Return the files at and below a path; empty if there are none."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.is_file()}


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_save(dataset: AbstractDataset[Any, Any], moment: str, size: int) -> bool:
    """Save in a child process; return whether it was killed while it saved."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if moment == RENAME:
            os.replace = Path.replace = die
        else:
            # the kernel ends a process that writes more to a file, whatever library writes it
            limit = {FIRST_BYTE: 0, HALF: size // 2, LAST_BYTE: size - 1}[moment]
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            save(dataset, "新")
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def problems_of(dataset: AbstractDataset[Any, Any], path: Path, moment: str, size: int) -> set[str]:
    """Kill a save; return what is wrong after it, and after the next start."""
    old = content_of(path)
    if not killed_save(dataset, moment, size):
        return {"was not killed"}
    found = set()
    if path.exists() and content_of(path) != old:
        found.add("changed")
    if dataset.exists() and not old:
        found.add("exists")
    discard_unfinished(DataCatalog({"output": dataset}))
    if content_of(path) != old:
        found.add("not restored")
    if [one for one in path.parent.iterdir() if one != path]:
        found.add("remains are left")
    return found


def find_problems(name: str, entry: dict[str, Any], folder: Path) -> list[str]:
    path = folder / entry["filepath"]
    dataset = AbstractDataset.from_config(name, {**entry, "filepath": str(path)})
    if not isinstance(dataset, tuple(SAMPLES)):
        return [f"{entry['type']}: name in SAMPLES what it saves"]
    save(dataset, "新")
    size = max(map(len, content_of(path).values()))
    problems = []
    for moment in MOMENTS:
        for has_old in (True, False):
            shutil.rmtree(path.parent)
            path.parent.mkdir()
            if has_old:
                save(dataset, "旧")
            case = f"{moment}, {'with' if has_old else 'without'} old content"
            found = problems_of(dataset, path, moment, size)
            problems += [f"{case}: {problem}" for problem in sorted(found)]
    return problems


if __name__ == "__main__":
    hub_publication_dataset.check_login = lambda repo_id: None
    found = {}
    for name, entry in json.loads(sys.argv[2]).items():
        if "repo_id" in entry:
            entry["repo_id"] = REPOSITORY
        # a folder each, so that the remains of one are not those of another
        found[name] = find_problems(name, entry, Path(sys.argv[1], name))
    print(json.dumps(found))
