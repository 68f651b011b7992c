"""SHA-256 of files by the gigabyte: in threads, with progress, each file once a process."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from ja_instruct.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from tqdm import tqdm

# hashlib lets go of the interpreter's lock, so that threads hash at once; more than a few wait for
# the disk
THREADS = 4
BLOCK_BYTES = 1 << 22
# The kernel's clock for file times ticks up to every 10 ms: a file that was changed more recently
# may be changed again without its times showing it.
UNSETTLED_NS = 50_000_000


class _Version(NamedTuple):
    """What changes when a file's content does; ``ctime_ns`` cannot be set back."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


_known: dict[_Version, str] = {}


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_checksums(directory: Path, names: Iterable[str], description: str) -> dict[str, Any]:
    """Return ``{name: {"sha256": hexadecimal, "bytes": size}}`` for files of a directory.

    A file that this process has hashed before and that has not changed since is not read again.

    Args:
        directory: Where the files are; links, such as the hub's cache has, are followed.
        names: Their paths in it.
        description: Shown beside the progress: ``quantization: hashing the source``.
    """
    from tqdm import tqdm

    paths = {name: directory / name for name in names}
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    with (
        tqdm(
            desc=description,
            total=sum(sizes.values()),
            unit="B",
            unit_scale=True,
            # small files are hashed before anybody could read it
            delay=1,
            disable=None,
        ) as progress,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        digests = pool.map(lambda path: _digest(path, progress), paths.values())
        return {
            name: {"sha256": digest, "bytes": sizes[name]}
            for name, digest in zip(paths, digests, strict=True)
        }


def _digest(path: Path, progress: tqdm[Any]) -> str:
    stat = path.stat()
    version = _Version(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if version in _known:
        progress.update(stat.st_size)
        return _known[version]
    settled = time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > UNSETTLED_NS
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            progress.update(len(block))
    if settled:
        _known[version] = digest.hexdigest()
    return digest.hexdigest()


def require_files(
    directory: Path, expected: Mapping[str, Mapping[str, Any]], description: str, remedy: str
) -> None:
    """Raise ``InputError`` unless a directory's weights and listed files are those expected.

    Args:
        directory: A model directory.
        expected: Path in it to ``sha256`` and, where it was noted, ``bytes``.
        description: Shown beside the progress.
        remedy: What to do about it, appended to the message.
    """
    for name, noted in expected.items():
        path = directory / name
        if not path.is_file():
            raise InputError(f"{path}: this file of the model is missing; {remedy}")
        size = path.stat().st_size
        if size != noted.get("bytes", size):
            raise InputError(
                f"{path}: {size:,} bytes, but {noted['bytes']:,} were written; the file was "
                f"changed or is incomplete; {remedy}"
            )
    unknown = {path.name for path in directory.glob("*.safetensors")} - set(expected)
    if unknown:
        raise InputError(
            f"{directory / min(unknown)}: these weights were not written with the model, and "
            f"would be loaded with it; remove the file, or {remedy}"
        )
    found = file_checksums(directory, expected, description)
    for name, noted in expected.items():
        if found[name]["sha256"] != noted["sha256"]:
            raise InputError(
                f"{directory / name}: SHA-256 {found[name]['sha256']}, but {noted['sha256']} was "
                f"written; the file was changed; {remedy}"
            )
