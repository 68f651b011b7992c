"""Files and directories that appear complete or not at all."""

from __future__ import annotations

import glob
import os
import shutil
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKEN_PATTERN = "[0-9a-f]" * 8


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
    for folder, _, names in os.walk(path):
        for name in names:
            if (file := path / folder / name).is_file() and not file.is_symlink():
                sync(file)
        sync(path / folder)
    if path.is_file():
        sync(path)


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
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex[:8]
    new = target.with_name(f".{target.name}.{token}.new")
    old = target.with_name(f".{target.name}.{token}.old")
    try:
        yield new
        _sync_tree(new)
        if target.is_dir():
            # a directory cannot be renamed over another that holds files
            target.rename(old)
        new.replace(target)
    except BaseException:
        _remove(new)
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    sync(target.parent)
    _remove(old)


def discard_unfinished(target: Path) -> list[Path]:
    """Remove the remains of a ``replacing`` whose process was killed; restore the old content.

    No process may be writing ``target``: its temporary files look the same.

    Returns:
        The paths that were removed or renamed.
    """
    remains = f".{glob.escape(target.name)}.{TOKEN_PATTERN}"
    found = []
    for old in target.parent.glob(f"{remains}.old"):
        found.append(old)
        if target.exists():
            _remove(old)
        else:  # killed between the two renames
            old.rename(target)
    for new in target.parent.glob(f"{remains}.new"):
        found.append(new)
        _remove(new)
    return found
