"""Files and directories that appear complete or not at all."""

from __future__ import annotations

import glob
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


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a sibling path to write to; on success it takes the place of ``target``.

    Works for files and directories. ``target`` keeps its old content until the very end, and for
    good when the block raises or the process dies.

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
        if target.is_dir():
            # A directory cannot be renamed over another that holds files.
            target.rename(old)
        new.replace(target)
    except BaseException:
        _remove(new)
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    _remove(old)


def discard_unfinished(target: Path) -> None:
    """Remove what a ``replacing`` left behind whose process was killed, and put back the old.

    Only for when nobody writes ``target`` any more: the leavings of the living look the same.
    """
    leavings = f".{glob.escape(target.name)}.{TOKEN_PATTERN}"
    for old in target.parent.glob(f"{leavings}.old"):
        if target.exists():
            _remove(old)
        else:  # killed between its two renames
            old.rename(target)
    for new in target.parent.glob(f"{leavings}.new"):
        _remove(new)
