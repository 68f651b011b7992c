"""What a process was saving when it was killed is gone afterwards, and nothing else is."""

import json
import logging
from pathlib import Path

import dying_datasets
import gpu_nodes
import pytest
from datasets import Dataset
from fake_devices import FakeDevices
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
    """Return what a folder holds, by path."""
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    return path


def run_and_die(dataset, tmp_path, function=gpu_nodes.identity, is_removed=True):
    """Save in a process that is killed; return the error."""
    nodes = [gpu(function, "text", "answers", "train")]
    with pytest.raises(GpuNodeError) as caught:
        run(nodes, {"text": TEXT, "answers": dataset}, FakeDevices(tmp_path / "devices"))
    said = "'answers' was not finished; the part that was written is removed"
    assert (said in caught.value.message) == is_removed
    return caught.value


class TestFile:
    def test_new(self, folder, tmp_path):
        run_and_die(dying_datasets.TextThatDies(folder / "answers.txt"), tmp_path)
        assert tree(folder) == {}

    def test_old_that_is_written_over(self, folder, tmp_path):
        (folder / "answers.txt").write_text(TEXT)
        run_and_die(dying_datasets.TextThatDies(folder / "answers.txt"), tmp_path)
        assert tree(folder) == {}

    def test_old_that_was_not_touched(self, folder, tmp_path):
        (folder / "answers.txt").write_text("complete")
        run_and_die(dying_datasets.TextThatDies(folder / "answers.txt", begins=False), tmp_path)
        assert tree(folder) == {"answers.txt": "complete"}


class TestVersioned:
    @pytest.mark.parametrize("version", [Version(None, NEW), Version(None, None)])
    def test_new_version(self, version, folder, tmp_path):
        older = folder / "answers.txt" / OLD / "answers.txt"
        older.parent.mkdir(parents=True)
        older.write_text("older")
        dataset = dying_datasets.VersionedTextThatDies(folder / "answers.txt", version)
        run_and_die(dataset, tmp_path)
        relative = Path("answers.txt") / OLD / "answers.txt"
        assert tree(folder) == {
            "answers.txt": None,
            str(relative.parent): None,
            str(relative): "older",
        }


class TestJSONLines:
    @pytest.mark.parametrize("has_old", [False, True])
    def test_sibling(self, has_old, folder, tmp_path):
        path = folder / "answers.jsonl"
        if has_old:
            JSONLinesDataset(filepath=path).save(Dataset.from_list([{"output": "旧"}]))
        before = tree(folder)
        run_and_die(dying_datasets.JSONLinesThatDie(filepath=path), tmp_path)
        assert tree(folder) == before


class TestDirectory:
    def test_new(self, folder, tmp_path):
        run_and_die(dying_datasets.DirectoryThatDies(folder / "model"), tmp_path)
        assert tree(folder) == {}

    def test_old_in_which_a_file_was_written_over(self, folder, tmp_path):
        (folder / "model").mkdir()
        for name in ("config", "weights"):
            (folder / "model" / name).write_text("old")
        run_and_die(dying_datasets.DirectoryThatDies(folder / "model"), tmp_path)
        assert tree(folder) == {}


class TestElsewhere:
    def test_other_file_system(self, folder, tmp_path, caplog):
        dataset = dying_datasets.TextThatDies("bucket/answers.txt", protocol="s3", begins=False)
        run_and_die(dataset, tmp_path, is_removed=False)
        assert (
            "'answers' of node 'train' may be half-written: bucket/answers.txt; remove it before "
            "a run with --only-missing-outputs"
        ) in caplog.messages

    def test_dataset_that_does_not_say_where(self, folder, tmp_path, caplog):
        run_and_die(dying_datasets.FolderOfParts("some/folder"), tmp_path, is_removed=False)
        assert "'answers' of node 'train' may be half-written: " in caplog.text
        assert "some/folder" in caplog.text


class TestGenerator:
    """Its output is complete when it has ended, not with each chunk."""

    def test_killed_between_chunks(self, folder, tmp_path):
        dataset = dying_datasets.AppendedText(folder / "answers.txt")
        run_and_die(dataset, tmp_path, gpu_nodes.chunks_and_die)
        assert tree(folder) == {}

    def test_exception_between_chunks(self, folder, tmp_path):
        dataset = dying_datasets.AppendedText(folder / "answers.txt")
        error = run_and_die(dataset, tmp_path, gpu_nodes.chunks_and_raise)
        assert error.reason == "exception"
        assert tree(folder) == {}


class TestWatch:
    """What needs no process."""

    def watch(self, dataset, function=gpu_nodes.double):
        catalog = DataCatalog({"x": MemoryDataset(1), "answers": dataset})
        return OutputWatch(gpu(function, "x", "answers", "train"), catalog)

    def test_saved_output_is_kept(self, folder):
        path = folder / "answers.txt"
        watch = self.watch(TextDataset(filepath=str(path)))
        watch.saving("answers")
        path.write_text(TEXT)
        watch.saved("answers", was_saved_here=False)
        assert watch.unfinished() == []
        watch.discard_unfinished()
        assert path.read_text() == TEXT

    def test_link_goes_and_what_it_points_to_stays(self, folder):
        (folder / "elsewhere").mkdir()
        watch = self.watch(TextDataset(filepath=str(folder / "model")))
        watch.saving("answers")
        (folder / "model").symlink_to(folder / "elsewhere")
        watch.discard_unfinished()
        assert tree(folder) == {"elsewhere": None}

    def test_output_that_cannot_be_removed(self, folder, caplog, monkeypatch):
        path = folder / "answers.txt"
        watch = self.watch(TextDataset(filepath=str(path)))
        watch.saving("answers")
        path.write_text("half")

        def refuse(path):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "unlink", refuse)
        watch.discard_unfinished()
        assert f"may be half-written: [Errno 13] Permission denied: '{path}'; remove" in caplog.text

    def test_name_with_characters_of_patterns(self, folder):
        dataset = TextDataset(filepath=str(folder / "a[1]*?.txt"), version=Version(None, NEW))
        watch = self.watch(dataset)
        watch.saving("answers")
        half = folder / "a[1]*?.txt" / NEW / "a[1]*?.txt"
        half.parent.mkdir(parents=True)
        half.write_text("half")
        watch.discard_unfinished()
        assert not half.parent.exists()

    def test_output_in_memory_is_no_warning(self, caplog):
        caplog.set_level(logging.WARNING)
        watch = self.watch(MemoryDataset())
        watch.saving("answers")
        watch.discard_unfinished()
        assert caplog.messages == []

    def test_parts_are_not_removed_but_named(self, folder, caplog):
        watch = self.watch(PartitionedDataset(path=str(folder), dataset="text.TextDataset"))
        watch.saving("answers")
        (folder / "part").write_text(json.dumps(1))
        watch.discard_unfinished()
        assert (folder / "part").exists()
        assert str(folder) in caplog.text
