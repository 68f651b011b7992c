"""Small JSON files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import uuid
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from pathlib import Path


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object; None if there is no such file, or if it holds something else."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def write_json(path: Path, content: dict[str, Any], *, is_durable: bool = True) -> None:
    """Replace a file by a temporary sibling; its folder is created.

    Args:
        path: The file.
        content: A JSON object.
        is_durable: Whether the file must survive a power failure, not only the end of the process.

    Raises:
        OSError: The folder is read-only or the disk is full; the old file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{os.getpid()}.{uuid.uuid4().hex[:8]}.new")
    try:
        # names of files may hold bytes that are not UTF-8, which JSON can only escape
        with new.open("w", encoding="utf-8", errors="backslashreplace") as file:
            json.dump(content, file, ensure_ascii=False, indent=1)
            file.flush()
            if is_durable:
                os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def discard_unfinished(folder: Path) -> None:
    """Remove temporary files whose process was killed."""
    for new in folder.glob(".*.new"):
        pid = new.name.split(".")[-3]
        if not (pid.isdigit() and is_other_process(int(pid))):
            new.unlink(missing_ok=True)


def is_other_process(pid: object) -> bool:
    """Return whether another process with this ID is running."""
    return isinstance(pid, int) and pid != os.getpid() and bool(psutil.pid_exists(pid))
