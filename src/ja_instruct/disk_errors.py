"""Errors of disks and permissions as one message: the place, the reason, the remedy."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ja_instruct.errors import InputError
from kedro_cuda_runner.formatting import gigabytes
from kedro_cuda_runner.outputs import existing_parent

if TYPE_CHECKING:
    from collections.abc import Iterator

FULL = (errno.ENOSPC, errno.EDQUOT)
DENIED = (errno.EACCES, errno.EPERM)
KINDS = (*FULL, *DENIED, errno.EROFS, errno.EFBIG)
# as Python and Rust write the number of an error, and Python the file, into its text
NUMBER = re.compile(r"\[Errno (\d+)\][^'\n]*(?:'([^'\n]+)')?|\(os error (\d+)\)")
# errors without a number: of C++ libraries, torch.save and SQLite
TEXTS = {
    "No space left on device": errno.ENOSPC,
    "PytorchStreamWriter failed writing": errno.ENOSPC,
    "] . unexpected pos ": errno.ENOSPC,
    "database or disk is full": errno.ENOSPC,
    "attempt to write a readonly database": errno.EROFS,
}
CONTINUE = (
    "then repeat the command with --only-missing-outputs to continue. What was there before is "
    "unchanged"
)


@contextmanager
def writing(target: Path | None, part: Path | None = None) -> Iterator[None]:
    """Turn an error of the disk or of permissions within the block into one message.

    Args:
        target: The file or directory that is written, for errors that name none.
        part: Where it is written to until it is complete; by default ``target``.

    Raises:
        InputError: Names the file, the free space and the remedy.
    """
    try:
        yield
    except Exception as error:
        if message := explain_disk_error(error, target, part):
            raise InputError(message) from error
        raise


@contextmanager
def reading(path: Path | None) -> Iterator[None]:
    """Turn a lacking permission to read into one message.

    Args:
        path: A file or directory that is checked first, if there is one: to some libraries a file
            that they may not read does not exist.

    Raises:
        InputError: Names the file and the remedy.
    """
    with writing(None):
        files = [path, *path.rglob("*")] if path is not None and path.exists() else []
        for file in files:
            if not _is_readable(file):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        yield


def explain_disk_error(
    error: BaseException, target: Path | None = None, part: Path | None = None
) -> str:
    """Return the message for an error of the disk or of permissions, or an empty string.

    An error that was raised from such an error, or has its text, counts. An ``InputError`` has its
    message already. See ``writing`` for the arguments.
    """
    found = _find(error, has_target=target is not None)
    if found is None:
        return ""
    number, name = found
    part = part or target
    path = target if part and (name is None or name.is_relative_to(part)) else name
    place = str(path or "a file")
    is_read = path is not None and number in DENIED and path.exists() and not _is_readable(path)
    reason = _reason(number, path, part)
    if is_read:
        return f"{place} cannot be read: {reason}; give it, and repeat the command"
    remedy = _remedy(number, path, is_target=path == target)
    return f"{place} cannot be written: {reason}; {remedy}, {CONTINUE}"


def _find(error: BaseException, *, has_target: bool) -> tuple[int, Path | None] | None:
    """Return number and file of the first such error in a chain."""
    one: BaseException | None = error
    while one is not None and not isinstance(one, InputError):
        number, name = _parse(one)
        # a process or a socket may be denied, too
        if number in KINDS and (number not in DENIED or name or has_target):
            return number, Path(name) if name else None
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return None


def _parse(error: BaseException) -> tuple[int, str]:
    """Return the number of an error, 0 without one, and the name of the file, if it has one."""
    if isinstance(error, OSError) and error.errno is not None:
        name = error.filename
        return error.errno, os.fsdecode(name) if isinstance(name, str | bytes) else ""
    text = str(error)
    if match := NUMBER.search(text):
        return int(match[1] or match[3]), match[2] or ""
    return next((number for part, number in TEXTS.items() if part in text), 0), ""


def _is_readable(path: Path) -> bool:
    return os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK)


def _reason(number: int, path: Path | None, part: Path | None) -> str:
    if number in DENIED:
        return f"the user with the id {os.getuid()} has no permission"
    if number == errno.EROFS:
        return "the file system is read-only"
    if number == errno.EFBIG:
        return "it is larger than the file system or 'ulimit -f' allows"
    reason = "no room is left on the disk" if number == errno.ENOSPC else "your quota is used up"
    if path is None:
        return reason
    state = os.statvfs(existing_parent(path))
    if state.f_files and not state.f_favail:
        return "the disk has no room for another file (no free inodes)"
    done = _bytes_of(part) if part else 0
    free, total = state.f_bavail * state.f_frsize, state.f_blocks * state.f_frsize
    written = f" after {gigabytes(done)} of it" if done else ""
    return f"{reason}, {gigabytes(free)} of {gigabytes(total)} are free{written}"


def _remedy(number: int, path: Path | None, *, is_target: bool) -> str:
    folders = {} if _is_in(path, Path.cwd()) else variables()
    if is_target:  # a catalog entry may name a folder there
        folders.pop("TMPDIR", None)
    around = [name for name, folder in folders.items() if _is_in(path, folder)]
    variable = max(around, key=lambda name: len(folders[name].parts), default=None)
    elsewhere = f"set {variable} to" if variable else "point it (catalog or parameters) to"
    if number in FULL:
        return f"make room, or {elsewhere} a folder on a larger disk"
    if number == errno.EFBIG:
        return f"raise the limit, or {elsewhere} a folder on another disk"
    return f"change that, or {elsewhere} a folder that can be written to"


def variables() -> dict[str, Path]:
    """Return the environment variables of folders outside of the project, with their folders.

    Those that are unset and whose folder is in that of another variable are left out.
    """
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path's method raises without a home
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    defaults = {
        "HF_HOME": cache / "huggingface",
        "HF_HUB_CACHE": None,
        "HF_DATASETS_CACHE": None,
        "TRITON_CACHE_DIR": Path(os.environ.get("TRITON_HOME") or home) / ".triton" / "cache",
        "TORCHINDUCTOR_CACHE_DIR": None,
        "MPLCONFIGDIR": None,
    }
    folders = {name: os.environ.get(name) or folder for name, folder in defaults.items()}
    folders["TMPDIR"] = tempfile.gettempdir()
    return {name: Path(folder) for name, folder in folders.items() if folder is not None}


def _is_in(path: Path | None, folder: Path) -> bool:
    return path is not None and path.absolute().is_relative_to(folder.absolute())


def _bytes_of(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file())
