"""Files and directories that appear complete or not at all."""

from __future__ import annotations

import glob
import logging
import os
import shutil
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from ja_instruct.disk_errors import writing
from ja_instruct.errors import InputError
from ja_instruct.tables.locks import LockFile, is_locked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

TOKEN_PATTERN = "[0-9a-f]" * 8
SUFFIXES = (".new", ".old", ".lock")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(path: Path) -> None:
    """Flush a file, or a directory with everything below it; links are not followed."""
    for one in (*path.rglob("*"), path):
        if not one.is_symlink():
            sync(one)


def _sibling(target: Path, token: str, suffix: str) -> Path:
    return target.with_name(f".{target.name}.{token}.{suffix}")


@contextmanager
def _marked_as_being_written(target: Path, token: str) -> Iterator[None]:
    try:
        lock = LockFile(_sibling(target, token, "lock"))
    except OSError:  # the file system has no locks, or writing fails for the same reason
        yield
        return
    try:
        yield
    finally:
        lock.release()


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a sibling path to write to; it replaces ``target`` when the block succeeds.

    Works for files and directories. ``target`` keeps its old content until the end of the block,
    and permanently if the block raises or the process is killed. The new content is on the disk
    before it replaces the old: a power failure leaves one or the other.

    Args:
        target: The file or directory to replace; its parents are created.

    Yields:
        A path beside ``target`` that does not exist yet.

    Raises:
        InputError: The disk is full, the place cannot be written to, or a directory is in the place
            of a file or the reverse.
    """
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex[:8]
    new, old = _sibling(target, token, "new"), _sibling(target, token, "old")
    with _marked_as_being_written(target, token):
        try:
            with writing(target, new):
                yield new
                _sync_tree(new)
                _require_same_kind(target, new)
                if target.is_dir():
                    # a directory cannot be renamed over another that holds files
                    target.rename(old)
                new.replace(target)
        except BaseException:
            with suppress(OSError):  # on a read-only file system even if there is nothing
                _remove(new)
            if old.exists() and not target.exists():
                old.rename(target)
            raise
        sync(target.parent)
        _remove(old)


def _require_same_kind(target: Path, new: Path) -> None:
    if target.exists() and new.exists() and target.is_dir() != new.is_dir():
        found, expected = ("directory", "file") if target.is_dir() else ("file", "directory")
        raise InputError(
            f"{target}: a {found} is in the place of the {expected} that is saved here; move it "
            f"away, or set another filepath in the catalog"
        )


def discard_unfinished(target: Path) -> None:
    """Remove the remains of a ``replacing`` whose process was killed; restore the old content.

    What a process is writing is left alone, unless the file system has no locks.
    """
    pattern = f".{glob.escape(target.name)}.{TOKEN_PATTERN}.*"
    for path in sorted(target.parent.glob(pattern)):
        if path.suffix not in SUFFIXES or _is_being_written(path.with_suffix(".lock")):
            continue
        if path.suffix == ".old" and not target.exists():  # killed between the two renames
            path.rename(target)
            logger.info("Restored %s, which a killed process was replacing", target)
        else:
            _remove(path)
            if path.suffix == ".new":
                logger.info("Removed %s, which a killed process left unfinished", path)


def _is_being_written(lock: Path) -> bool:
    try:
        return is_locked(lock)
    except OSError:
        return False
