import os
import signal
import subprocess
import sys
import threading

import pytest

from ja_instruct.tables.locks import LockFile, is_locked, locked

HOLD = (
    "import os, signal, sys\n"
    "from pathlib import Path\n"
    "from ja_instruct.tables.locks import LockFile\n"
    "lock = LockFile(Path(sys.argv[1]))\n"
)


def start(path, then):
    """Start a process that holds the lock; return it when it does."""
    code = f"{HOLD}{then}"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    return process


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.lock"


def test_file_exists_while_it_is_locked(path):
    assert not is_locked(path)
    with locked(path):
        assert is_locked(path)
        assert path.exists()
    assert not is_locked(path)
    assert not path.exists()


def test_lock_of_another_process(path):
    process = start(path, "print(flush=True); sys.stdin.read()")
    assert is_locked(path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert path.exists()
    assert not is_locked(path)
    with locked(path):
        assert is_locked(path)


def test_forked_child_does_not_keep_the_lock(path):
    """Workers of a runner that was killed may live on."""
    fork = (
        "if os.fork() == 0:\n"
        "    print(os.getpid(), flush=True)\n"
        "    sys.stdin.read()\n"
        "else:\n"
        "    signal.pause()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD + fork, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    child = int(process.stdout.readline())
    assert is_locked(path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    os.kill(child, 0)  # is alive
    assert not is_locked(path)
    process.stdin.close()


def test_child_that_ends_does_not_release_it(path):
    with locked(path):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        assert is_locked(path)


def test_waits_for_the_owner_and_survives_its_removal(path):
    first = LockFile(path)
    got = threading.Event()

    def wait():
        with locked(path):
            got.set()
            assert is_locked(path)

    thread = threading.Thread(target=wait)
    thread.start()
    assert not got.wait(0.1)
    first.release()
    thread.join(5)
    assert got.is_set()
    assert not path.exists()


def test_folder_that_cannot_be_written_to(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        LockFile(tmp_path / "missing" / "run.lock")


def test_file_system_without_locks(path, monkeypatch):
    def refuse(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError, match="not implemented"):
        LockFile(path)
    assert not path.exists()
    path.touch()
    with pytest.raises(OSError, match="not implemented"):
        is_locked(path)
