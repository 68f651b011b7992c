"""Outputs that a process was saving when it was killed are removed, and nothing else."""

import json
import logging
from pathlib import Path

import gpu_nodes
import pytest
from datasets import Dataset
from dying_datasets import (
    AppendedText,
    DirectoryThatDies,
    FolderOfParts,
    JSONLinesThatDie,
    TextThatDies,
    TextThatDiesFirst,
)
from gpu_runs import gpu, run
from kedro.io import DataCatalog, MemoryDataset, Version
from kedro_datasets.partitions import PartitionedDataset
from kedro_datasets.text import TextDataset

from ja_instruct.datasets import JSONLinesDataset
from kedro_cuda_runner import GpuNodeError
from kedro_cuda_runner.outputs import OutputWatch

OLD, NEW = "2025-01-01T00.00.00.000Z", "2026-01-01T00.00.00.000Z"
TEXT = "a text of which half is written"


def tree(folder):
    """Return the texts of the files in a folder by path, and None for each folder in it."""
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    return path


def run_and_die(dataset, layer, function=gpu_nodes.double, is_removed=True):
    """Save in a process that is killed; return the error."""
    with pytest.raises(GpuNodeError) as caught:
        run([gpu(function, "text", "answers", "train")], {"text": TEXT, "answers": dataset}, layer)
    expected = "'answers' was not finished; the part that was written is removed"
    assert (expected in caught.value.message) == is_removed
    return caught.value


WHOLE, OLD_FILES = {"answers": "complete"}, {"answers/config": "old", "answers/weights": "old"}


class TestRun:
    @pytest.mark.parametrize(
        ("kind", "before", "after"),
        [
            (TextThatDies, {}, {}),
            (TextThatDies, WHOLE, {}),
            (TextThatDiesFirst, WHOLE, WHOLE),
            (DirectoryThatDies, {}, {}),
            (DirectoryThatDies, OLD_FILES, {}),
        ],
        ids=["new file", "overwritten", "untouched", "new directory", "file in it overwritten"],
    )
    def test_killed_while_saving(self, kind, before, after, folder, layer):
        for name, text in before.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        run_and_die(kind(filepath=str(folder / "answers")), layer)
        assert tree(folder) == after

    @pytest.mark.parametrize("version", [Version(None, NEW), Version(None, None)])
    def test_only_the_new_version_is_removed(self, version, folder, layer):
        older = folder / "answers.txt" / OLD / "answers.txt"
        older.parent.mkdir(parents=True)
        older.write_text("older")
        before = tree(folder)
        run_and_die(TextThatDies(filepath=str(folder / "answers.txt"), version=version), layer)
        assert tree(folder) == before

    @pytest.mark.parametrize("has_old", [False, True])
    def test_dataset_that_discards_by_itself(self, has_old, folder, layer):
        path = folder / "answers.jsonl"
        if has_old:
            JSONLinesDataset(filepath=path).save(Dataset.from_list([{"output": "旧"}]))
        before = tree(folder)
        run_and_die(JSONLinesThatDie(filepath=path), layer)
        assert tree(folder) == before

    @pytest.mark.parametrize(
        ("dataset", "place"),
        [
            (TextThatDiesFirst(filepath="memory://bucket/answers.txt"), ": /answers.txt"),
            (FolderOfParts("some/folder"), "some/folder"),
        ],
        ids=["other file system", "dataset without a known path"],
    )
    def test_warning_where_nothing_can_be_removed(self, dataset, place, layer, caplog):
        run_and_die(dataset, layer, is_removed=False)
        (warning,) = [one for one in caplog.messages if "may be half-written" in one]
        assert warning.startswith("'answers' of node 'train' may be half-written: ")
        assert place in warning
        assert warning.endswith("; remove it before a run with --only-missing-outputs")

    @pytest.mark.parametrize(
        ("function", "reason"),
        [(gpu_nodes.chunks_and_die, "killed"), (gpu_nodes.chunks_and_raise, "exception")],
    )
    def test_generator_that_ends_between_chunks(self, function, reason, folder, layer):
        """Its output is complete at its end, not with each chunk."""
        error = run_and_die(AppendedText(filepath=str(folder / "answers.txt")), layer, function)
        assert error.reason == reason
        assert tree(folder) == {}


class TestWatch:
    """What needs no process."""

    def watch(self, dataset):
        """Return the watch of a node that is saving."""
        catalog = DataCatalog({"x": MemoryDataset(1), "answers": dataset})
        watch = OutputWatch(gpu(gpu_nodes.double, "x", "answers", "train"), catalog)
        watch.saving("answers")
        return watch

    def test_saved_output_is_kept(self, folder):
        path = folder / "answers.txt"
        watch = self.watch(TextDataset(filepath=str(path)))
        path.write_text(TEXT)
        watch.saved("answers", was_saved_here=False)
        assert watch.discard_unfinished() == []
        assert path.read_text() == TEXT

    def test_link_is_removed_without_its_target(self, folder):
        (folder / "elsewhere").mkdir()
        watch = self.watch(TextDataset(filepath=str(folder / "model")))
        (folder / "model").symlink_to(folder / "elsewhere")
        watch.discard_unfinished()
        assert tree(folder) == {"elsewhere": None}

    def test_output_that_cannot_be_removed(self, folder, caplog, monkeypatch):
        path = folder / "answers.txt"
        watch = self.watch(TextDataset(filepath=str(path)))
        path.write_text("half")

        def refuse(path):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "unlink", refuse)
        watch.discard_unfinished()
        assert f"may be half-written: [Errno 13] Permission denied: '{path}'; remove" in caplog.text

    def test_name_with_characters_of_patterns(self, folder):
        dataset = TextDataset(filepath=str(folder / "a[1]*?.txt"), version=Version(None, NEW))
        watch = self.watch(dataset)
        half = folder / "a[1]*?.txt" / NEW / "a[1]*?.txt"
        half.parent.mkdir(parents=True)
        half.write_text("half")
        watch.discard_unfinished()
        assert not half.parent.exists()

    def test_no_warning_for_output_in_memory(self, caplog):
        caplog.set_level(logging.WARNING)
        watch = self.watch(MemoryDataset())
        watch.discard_unfinished()
        assert caplog.messages == []

    def test_parts_are_not_removed_but_named(self, folder, caplog):
        watch = self.watch(PartitionedDataset(path=str(folder), dataset="text.TextDataset"))
        (folder / "part").write_text(json.dumps(1))
        watch.discard_unfinished()
        assert (folder / "part").exists()
        assert str(folder) in caplog.text
