"""The message of each error of a disk or of permissions, whichever library raises it."""

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from kedro.io import DatasetError

from ja_instruct.disk_errors import explain_disk_error, reading, writing
from ja_instruct.errors import InputError
from ja_instruct.tables.answer_store import AnswerStore
from ja_instruct.tables.atomic import replacing
from kedro_cuda_runner.worker import _is_usage_error

CONTINUE = (
    ", then repeat the command with --only-missing-outputs to continue. What was there before is "
    "unchanged"
)
MAKE_ROOM = "make room, or point it (catalog or parameters) to a folder on a larger disk"
NO_ROOM = "no room is left on the disk, "
READ_ONLY = "the file system is read-only; change that, or point it (catalog or parameters) to a f"


def numbered(number, name=None):
    return OSError(number, os.strerror(number), name)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (numbered(errno.ENOSPC), NO_ROOM),
        (numbered(errno.EDQUOT), "your quota is used up, "),
        (numbered(errno.EROFS), READ_ONLY),
        (numbered(errno.EACCES), f"the user with the id {os.getuid()} has no permission; change"),
        (numbered(errno.EFBIG), "it is larger than the file system or 'ulimit -f' allows; raise"),
        (shutil.Error([("a", "b", f"[Errno {errno.ENOSPC}] No space left on device")]), NO_ROOM),
        (Exception("I/O error: No space left on device (os error 28)"), NO_ROOM),
        (Exception("Read-only file system (os error 30)"), READ_ONLY),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 5 vs 4"),
            NO_ROOM,
        ),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write fail"), NO_ROOM),
        (sqlite3.OperationalError("database or disk is full"), NO_ROOM),
        (sqlite3.OperationalError("attempt to write a readonly database"), READ_ONLY),
        (DatasetError("adapter: [Errno 28] No space left on device"), NO_ROOM),
        (RuntimeError("std::ios_base::failure: No space left on device"), NO_ROOM),
    ],
)
def test_reason(tmp_path, error, reason):
    target = tmp_path / "adapter"
    assert explain_disk_error(error, target).startswith(f"{target} cannot be written: {reason}")
    with pytest.raises(InputError) as caught, writing(target):
        raise DatasetError("adapter: Failed while saving data") from error
    assert str(caught.value) == explain_disk_error(error, target)
    assert str(caught.value).endswith(CONTINUE)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a wrong value"),
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        FileNotFoundError(errno.ENOENT, "no such file", "/there"),
        RuntimeError("PytorchStreamReader failed reading zip archive"),
    ],
)
def test_other_errors_are_left_alone(error):
    assert explain_disk_error(error) == ""
    with pytest.raises(type(error)) as caught, writing(Path("there")):
        raise error
    assert caught.value is error


def test_denied_socket_or_process_is_left_alone():
    assert explain_disk_error(numbered(errno.EACCES)) == ""


def test_file_that_the_text_names():
    error = RuntimeError("node 'train' failed: [Errno 30] Read-only file system: '/there/a b'")
    assert explain_disk_error(error).startswith("/there/a b cannot be written: the file system is")


def test_message_is_kept():
    message = InputError("the adapter is of another base")
    message.__cause__ = numbered(errno.ENOSPC)
    assert explain_disk_error(message) == ""


def test_free_space_and_size_of_the_part_are_named(tmp_path, monkeypatch):
    state = SimpleNamespace(f_files=9, f_favail=9, f_frsize=1000, f_bavail=3000, f_blocks=4_200_000)
    monkeypatch.setattr(os, "statvfs", lambda _: state)
    with pytest.raises(InputError) as caught, replacing(tmp_path / "adapter") as new:
        new.mkdir()
        (new / "weights").write_bytes(bytes(150_000))
        raise numbered(errno.ENOSPC)
    assert str(caught.value) == (
        f"{tmp_path / 'adapter'} cannot be written: {NO_ROOM}3.00 MB of 4.2 GB are free after "
        f"0.15 MB of it; {MAKE_ROOM}{CONTINUE}"
    )
    assert list(tmp_path.iterdir()) == []


def test_disk_without_inodes(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_files=9, f_favail=0))
    message = explain_disk_error(numbered(errno.ENOSPC), tmp_path / "adapter")
    assert ": the disk has no room for another file (no free inodes); make room" in message


@pytest.mark.parametrize(
    ("variable", "folder"),
    [
        ("TMPDIR", None),
        ("HF_HOME", None),
        ("HF_HOME", "hub"),
        ("TRITON_CACHE_DIR", "triton"),
        ("TORCHINDUCTOR_CACHE_DIR", "inductor"),
        ("MPLCONFIGDIR", "mpl"),
    ],
)
def test_variable_of_a_folder_outside_of_the_project(monkeypatch, tmp_path, variable, folder):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    places = {"TMPDIR": tempfile.gettempdir(), "HF_HOME": tmp_path / "home/.cache/huggingface"}
    place = places.get(variable) if folder is None else f"/caches/{folder}"
    if folder is not None:
        monkeypatch.setenv(variable, place)
    message = explain_disk_error(numbered(errno.EROFS, f"{place}/a/file"))
    assert f"; change that, or set {variable} to a folder that can be written to, " in message


def test_file_that_cannot_be_read(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    monkeypatch.setattr(os, "access", lambda *_: False)
    message = explain_disk_error(numbered(errno.EACCES, str(path)), tmp_path / "adapter")
    assert message == (
        f"{path} cannot be read: the user with the id {os.getuid()} has no permission; give it, "
        f"and repeat the command"
    )


def test_directory_with_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with reading(tmp_path), reading(tmp_path / "missing"), reading(None):
        pass
    monkeypatch.setattr(os, "access", lambda path, _: path.suffix != ".safetensors")
    with pytest.raises(InputError, match=r"/model.safetensors cannot be read: "), reading(tmp_path):
        raise AssertionError


def raised_from(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "is_enough"),
    [
        (InputError("the disk is full"), True),
        (raised_from(DatasetError("adapter: the disk is full"), InputError("")), True),
        (raised_from(DatasetError("adapter"), numbered(errno.ENOSPC)), True),
        (numbered(errno.EROFS), True),
        (raised_from(DatasetError("adapter"), ValueError("a slip")), False),
        (numbered(errno.ENOENT), False),
    ],
)
def test_message_of_a_process_of_its_own_is_enough_without_a_traceback(error, is_enough):
    assert _is_usage_error(error) is is_enough


# A limit on the size of files stops a write halfway, wherever a file system cannot be mounted.
LIMITED = """
import resource, sys
from pathlib import Path
import numpy, torch
from safetensors.numpy import save_file
from ja_instruct.tables.atomic import replacing
from ja_instruct.errors import InputError

resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
save = {
    "safetensors": lambda path: save_file({"a": numpy.zeros(9999)}, path),
    "torch": lambda path: torch.save({"a": torch.zeros(9999)}, path),
    "python": lambda path: path.write_bytes(bytes(9999)),
}[sys.argv[1]]
try:
    with replacing(Path(sys.argv[2])) as new:
        save(new)
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("library", ["safetensors", "torch", "python"])
def test_write_that_is_stopped_halfway(tmp_path, library, subprocess_environment):
    target = tmp_path / "weights"
    target.write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, library, str(target)],
        env=subprocess_environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.startswith(f"{target} cannot be written: "), done.stderr
    assert done.stdout.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
    assert target.read_text() == "old"


def test_answer_that_does_not_fit_leaves_no_half_line(tmp_path, subprocess_environment):
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from ja_instruct.tables.answer_store import AnswerStore\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "store = AnswerStore(Path(sys.argv[1]))\n"
        "store.append('a', {'text': '東京'})\n"
        "store.append('b', {'text': '京' * 99})\n"
    )
    path = tmp_path / "answer_store.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env=subprocess_environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert f"InputError: {path} cannot be written: it is larger than" in done.stderr
    assert path.read_text("utf-8") == '{"key": "a", "answer": {"text": "東京"}}\n'
    assert len(AnswerStore(path)) == 1
