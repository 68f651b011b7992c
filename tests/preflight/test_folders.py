"""Folders that a run cannot write to are found before it computes."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import node
from kedro_datasets.text import TextDataset

from ja_instruct.datasets import (
    AdapterDataset,
    AnswerStoreDataset,
    EncodingCacheDataset,
    JSONLinesDataset,
)
from ja_instruct.errors import InputError
from ja_instruct.memory.resources import gpu_resources
from ja_instruct.preflight.folders import folder_problems
from ja_instruct.preflight.run import check_run


@gpu_resources(lambda node, catalog: None)
def train(store, cache, parameters):
    return "answers", "adapter"


@pytest.fixture
def problems(tmp_path):
    """Return a function that returns the problems of a run that writes below ``tmp_path``."""
    (tmp_path / "data").mkdir()

    def find(**other):
        catalog = DataCatalog(
            {
                "answers": JSONLinesDataset(filepath=tmp_path / "data/output/answers.jsonl"),
                "adapter": AdapterDataset(filepath=tmp_path / "data/models/adapter"),
                "store": AnswerStoreDataset(filepath=tmp_path / "data/output/store.jsonl"),
                "cache": EncodingCacheDataset(filepath=tmp_path / "data/cache"),
                "params:sft": MemoryDataset(
                    SimpleNamespace(checkpoint_dir=str(tmp_path / "data/checkpoints"))
                ),
                **other,
            }
        )
        run = node(
            train,
            ["store", "cache", "params:sft"],
            ["answers", "adapter"],
            name="train",
            tags="gpu",
        )
        return folder_problems([run], catalog)

    return find


def test_folders_that_can_be_made(problems, tmp_path):
    assert problems() == []
    assert list((tmp_path / "data").iterdir()) == []


def test_file_in_the_place_of_a_folder(problems, tmp_path):
    (tmp_path / "data/output").touch()
    assert problems() == [
        f"'answers', 'store' cannot be written: {tmp_path}/data/output is a file, so the folder "
        f"{tmp_path}/data/output cannot be created; move it away"
    ]


def test_link_to_a_disk_that_is_not_mounted(problems, tmp_path):
    (tmp_path / "data/models").symlink_to("/mnt/gone")
    assert problems() == [
        f"'adapter' cannot be written: {tmp_path}/data/models is a link to /mnt/gone, which does "
        f"not exist; correct the link"
    ]


def test_folder_of_another_user(problems, tmp_path, monkeypatch):
    (tmp_path / "data/checkpoints").mkdir()
    # a test may run as root, who may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "checkpoints")
    assert problems() == [
        f"'sft.checkpoint_dir' cannot be written: this user may not write to "
        f"{tmp_path}/data/checkpoints; change its permissions or its owner"
    ]


def test_read_only_file_system(problems, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_RDONLY))
    assert problems() == [
        f"'adapter', 'answers', 'cache', … cannot be written: {tmp_path}/data is on a read-only "
        f"file system; point 'filepath' elsewhere"
    ]


def test_full_disk(problems, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=12_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    (problem,) = problems()
    assert problem.endswith(
        f"the disk of {tmp_path}/data has 0.0 MB left; make room for at least 4 MB"
    )


def test_other_file_systems_are_not_checked(problems, tmp_path):
    (tmp_path / "data/output").touch()
    found = problems(
        answers=TextDataset(filepath="memory://output/a.txt"),
        store=AnswerStoreDataset(filepath=tmp_path / "data/a.jsonl"),
    )
    assert found == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path: (path / "mine").mkdir(parents=True),
            "has no ja_instruct.json, so it was not",
        ),
        (lambda path: path.touch(), "a file is in the place of the directory"),
    ],
)
def test_adapter_in_the_place_of_something_else(tmp_path, make, message):
    path = tmp_path / "adapter"
    make(path)
    catalog = DataCatalog({"x": MemoryDataset(1), "adapter": AdapterDataset(filepath=path)})
    run = SimpleNamespace(nodes=[node(lambda x: x, "x", "adapter", name="train")])
    with pytest.raises(InputError, match=f"'adapter': {path}: .*{message}"):
        check_run(run, catalog, only_missing_outputs=False)
    assert path.exists()


def test_report_in_the_place_of_a_directory(tmp_path):
    from ja_instruct.datasets import JSONDataset

    (tmp_path / "a.json").mkdir()
    catalog = DataCatalog(
        {"x": MemoryDataset(1), "report": JSONDataset(filepath=tmp_path / "a.json")}
    )
    run = SimpleNamespace(nodes=[node(lambda x: x, "x", "report", name="train")])
    with pytest.raises(InputError, match=r"'report': .*a.json: a directory is in the place of the"):
        check_run(run, catalog, only_missing_outputs=False)
