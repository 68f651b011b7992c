"""Lock files, which the kernel unlocks when their process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_descriptors: set[int] = set()


def _close_in_child() -> None:
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


# A fork copies the descriptor, and a lock is held until the last copy is closed: an orphaned
# worker would keep the lock of a process that was killed.
os.register_at_fork(after_in_child=_close_in_child)


class LockFile:
    """A file whose lock this process holds until ``release``, which removes it."""

    def __init__(self, path: Path) -> None:
        """Create the file and lock it; wait while another process or thread holds the lock.

        Raises:
            OSError: The folder is not writable, or its file system has no locks.
        """
        self.path = path
        while True:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            _descriptors.add(self._descriptor)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            except BaseException:
                self.release()
                raise
            if self._is_at_path():
                return
            self._close()  # its last owner removed the file before it was locked here

    def release(self) -> None:
        """Remove the file and release the lock; do nothing in a forked child."""
        if self._descriptor in _descriptors:
            self.path.unlink(missing_ok=True)
            self._close()

    def _is_at_path(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def _close(self) -> None:
        _descriptors.discard(self._descriptor)
        os.close(self._descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file that exists only meanwhile."""
    lock = LockFile(path)
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Return whether a process or thread holds the lock of a file.

    Raises:
        OSError: The file system has no locks.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        # shared, so that two processes that test the lock at once do not take each other for owners
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
