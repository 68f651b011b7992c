import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ja_instruct.errors import InputError
from ja_instruct.tables.atomic import discard_unfinished, replacing


def killed_in(target, write):
    """Replace ``target`` in a process that is killed during it."""
    code = (
        "import os, shutil, signal, sys\n"
        "from pathlib import Path\n"
        "from ja_instruct.tables.atomic import replacing\n"
        "die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"with replacing(Path(sys.argv[1])) as new:\n    {write}\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert ended.returncode == -signal.SIGKILL


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def write_file(path, content):
    path.write_text(content, "utf-8")


def write_directory(path, content):
    path.mkdir()
    (path / content).touch()


def content_of(path):
    if not path.exists():
        return None
    return path.read_text("utf-8") if path.is_file() else "".join(names(path))


@pytest.fixture(params=["旧", None])
def old(request):
    return request.param


both = pytest.mark.parametrize("write", [write_file, write_directory])


@both
def test_replaced_at_the_end(tmp_path, write, old):
    target = tmp_path / "deep" / "answers"
    if old:
        target.parent.mkdir()
        write(target, old)
    with replacing(target) as new:
        write(new, "新")
        assert content_of(target) == old
    assert content_of(target) == "新"
    assert names(target.parent) == ["answers"]


@both
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_interrupted(tmp_path, write, error, old):
    target = tmp_path / "answers"
    if old:
        write(target, old)
    with pytest.raises(error), replacing(target) as new:
        write(new, "半分")
        raise error
    assert content_of(target) == old
    assert names(tmp_path) == (["answers"] if old else [])


@both
def test_block_that_writes_nothing_is_an_error_and_keeps_the_old(tmp_path, write):
    write(tmp_path / "adapter", "old")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "adapter"):
        pass
    assert content_of(tmp_path / "adapter") == "old"
    assert names(tmp_path) == ["adapter"]


@both
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "x"), ValueError("IoError: No space left on device (os error)")]
)
def test_full_disk_is_explained(tmp_path, write, error):
    write(tmp_path / "adapter", "old")
    with (
        pytest.raises(
            InputError, match=r"adapter cannot be written: no room is left on the disk, "
        ),
        replacing(tmp_path / "adapter") as new,
    ):
        write(new, "半分")
        raise error
    assert content_of(tmp_path / "adapter") == "old"
    assert names(tmp_path) == ["adapter"]


@pytest.mark.parametrize(
    ("there", "saved", "message"),
    [
        (write_directory, write_file, "a directory is in the place of the file"),
        (write_file, write_directory, "a file is in the place of the directory"),
    ],
)
def test_other_kind_is_not_replaced(tmp_path, there, saved, message):
    there(tmp_path / "answers", "old")
    with pytest.raises(InputError, match=message), replacing(tmp_path / "answers") as new:
        saved(new, "new")
    assert content_of(tmp_path / "answers") == "old"
    assert names(tmp_path) == ["answers"]


def test_content_is_on_the_disk_before_it_replaces_the_old(tmp_path, monkeypatch):
    events = []

    def record(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append(
            path.name.replace(path.name[-13:-4], "") if ".new" in path.name else path.name
        )

    monkeypatch.setattr("os.fsync", record)
    monkeypatch.setattr("os.replace", lambda *paths: events.append("replace"))
    with replacing(tmp_path / "model") as new:
        write_directory(new, "weights")
    assert events == ["weights", ".model.new", "replace", tmp_path.name]


def test_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with replacing(Path("a/model")) as new:
        write_directory(new, "weights")
    assert names(tmp_path / "a/model") == ["weights"]


def test_without_locks_it_is_written_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "ja_instruct.tables.atomic.LockFile", lambda path: (tmp_path / "no/x").touch()
    )
    with replacing(tmp_path / "answers") as new:
        write_file(new, "新")
    assert names(tmp_path) == ["answers"]


@both
def test_old_is_restored_when_the_last_step_fails(tmp_path, monkeypatch, write):
    def fail(*paths):
        raise OSError("disk full")

    write(tmp_path / "adapter", "old")
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"), replacing(tmp_path / "adapter") as new:
        write(new, "new")
    assert content_of(tmp_path / "adapter") == "old"
    assert names(tmp_path) == ["adapter"]


def test_link_is_replaced_and_its_target_is_kept(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("旧", "utf-8")
    target = tmp_path / "answers.jsonl"
    target.symlink_to(elsewhere)
    with replacing(target) as new:
        new.write_text("新", "utf-8")
    assert target.read_text("utf-8") == "新"
    assert elsewhere.read_text("utf-8") == "旧"


class TestDiscardUnfinished:
    @pytest.mark.parametrize("write", ["new.write_text('半'); die()", "new.mkdir(); die()"])
    @pytest.mark.parametrize("name", ["answers.jsonl", "a[1]*? b", "回答"])
    def test_killed_while_writing(self, tmp_path, write, name):
        target = tmp_path / name
        target.write_text("旧", "utf-8")
        killed_in(target, write)
        assert len(names(tmp_path)) == 3  # with the lock file
        discard_unfinished(target)
        assert names(tmp_path) == [name]
        assert target.read_text("utf-8") == "旧"

    @pytest.mark.parametrize("name", ["adapter", "a[1]*? b"])
    @pytest.mark.parametrize(
        ("die", "expected"), [("Path.replace = die", "old"), ("shutil.rmtree = die", "new")]
    )
    def test_killed_before_or_after_the_last_rename(self, tmp_path, name, die, expected):
        target = tmp_path / name
        write_directory(target, "old")
        killed_in(target, f"new.mkdir(); (new / 'new').touch(); {die}")
        assert len(names(tmp_path)) == 3
        discard_unfinished(target)
        assert names(tmp_path) == [name]
        assert content_of(target) == expected

    @pytest.mark.parametrize("old", ["旧", None])
    def test_what_is_being_written_is_left_alone(self, tmp_path, old):
        target = tmp_path / "answers.jsonl"
        if old:
            target.write_text(old, "utf-8")
        with replacing(target) as new:
            write_file(new, "新")
            before = names(tmp_path)
            discard_unfinished(target)
            assert names(tmp_path) == before
        assert content_of(target) == "新"

    @pytest.mark.parametrize(
        "neighbour",
        [
            ".base_answers.jsonl.0123abcd.new",
            ".answers.jsonl.gz.0123abcd.new",
            ".answers.jsonl.0123abcd",
            ".answers.jsonl.0123abcd9.new",
            ".answers.jsonl.draft---.new",
            "answers.jsonl.0123abcd.new",
            ".answersXjsonl.0123abcd.new",
        ],
    )
    def test_neighbours_are_left_alone(self, tmp_path, neighbour):
        (tmp_path / neighbour).touch()
        (tmp_path / "answers.jsonl").touch()
        (tmp_path / ".answers.jsonl.0123abcd.old").touch()
        discard_unfinished(tmp_path / "answers.jsonl")
        assert names(tmp_path) == sorted(["answers.jsonl", neighbour])

    def test_name_with_characters_of_patterns_means_itself(self, tmp_path):
        (tmp_path / ".a1.0123abcd.new").touch()
        (tmp_path / ".a[1].0123abcd.new").touch()
        discard_unfinished(tmp_path / "a[1]")
        assert names(tmp_path) == [".a1.0123abcd.new"]

    def test_nothing_there(self, tmp_path):
        discard_unfinished(tmp_path / "no" / "such" / "folder")
        assert names(tmp_path) == []
