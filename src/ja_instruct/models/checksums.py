"""SHA-256 of model files, computed in threads and cached for all processes of a run.

Every GPU node runs in a process of its own and verifies the model directories that it loads.
Digests of large files are therefore cached in ``ja_instruct/checksums.json`` below ``HF_HOME``
(``~/.cache/huggingface``). A cached digest is valid for a day, and only while the file's inode,
size and times stay the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

from pydantic import Strict

from ja_instruct.errors import InputError
from ja_instruct.tables.atomic import discard_unfinished, replacing
from ja_instruct.tables.json_objects import JSONObject, read_json_object

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

logger = logging.getLogger(__name__)

# hashlib releases the interpreter's lock; more threads than this wait for the disk.
THREADS = 4
BLOCK_BYTES = 1 << 22
# A smaller file is hashed in less than 0.1 s.
CACHED_BYTES_MIN = 1 << 26
CACHED_SECONDS_MAX = 24 * 3600
# The kernel updates file times only every 10 ms or so. A file modified more recently than this
# could be modified again without a visible change of its times.
UNSETTLED_NS = 50_000_000


class FileRecord(TypedDict):
    """SHA-256 (hexadecimal) and size of a file, as ``ja_instruct.json`` lists it."""

    sha256: str
    bytes: int


def sha256_of(path: Path, progress: Callable[[int], object] | None = None) -> str:
    """Return the hexadecimal SHA-256 of a file; call ``progress`` with each block's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            if progress is not None:
                progress(len(block))
    return digest.hexdigest()


def file_checksums(
    directory: Path, names: Iterable[str], description: str
) -> dict[str, FileRecord]:
    """Return the SHA-256 and the size in bytes of files by their paths in the directory.

    Symbolic links, as in the hub's cache, are followed. The description labels the progress bar.

    Raises:
        InputError: A file cannot be read.
    """
    try:
        return _file_checksums({name: directory / name for name in names}, description)
    except OSError as error:
        raise InputError(
            f"{error.filename or directory}: cannot be read ({error.strerror or error}); make its "
            f"files readable, or copy them there again"
        ) from error


def _file_checksums(paths: Mapping[str, Path], description: str) -> dict[str, FileRecord]:
    from tqdm import tqdm

    sizes = {name: path.stat().st_size for name, path in paths.items()}
    cache = _DigestCache()
    with (
        tqdm(
            desc=description,
            total=sum(sizes.values()),
            unit="B",
            unit_scale=True,
            delay=1,  # no bar for small files
            disable=None,
        ) as progress,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        digests = list(pool.map(lambda path: cache.digest(path, progress.update), paths.values()))
    cache.write()
    return {
        name: {"sha256": digest, "bytes": sizes[name]}
        for name, digest in zip(paths, digests, strict=True)
    }


class _CachedDigests(JSONObject):
    """For each version of a file its digest, and when it was computed."""

    __pydantic_extra__: dict[str, Annotated[tuple[str, float], Strict(strict=False)]]


class _DigestCache:
    """The digests of large files that this or another process has computed in the last day.

    Two processes that write at the same time may lose each other's entries, which are then computed
    again.
    """

    def __init__(self) -> None:
        from huggingface_hub import constants

        self._path = Path(constants.HF_HOME) / "ja_instruct" / "checksums.json"
        self._known = self._read()
        self._new: dict[str, tuple[str, float]] = {}

    def digest(self, path: Path, progress: Callable[[int], object]) -> str:
        """Return the SHA-256 of a file, from the cache if the file has not changed."""
        stat = path.stat()
        # ctime cannot be set back, so a changed file is noticed even if its mtime is restored
        version = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        key = "-".join(map(str, version))
        if key in self._known:
            progress(stat.st_size)
            return self._known[key][0]
        is_settled = time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > UNSETTLED_NS
        digest = sha256_of(path, progress)
        if is_settled and stat.st_size >= CACHED_BYTES_MIN:
            self._new[key] = (digest, time.time())
        return digest

    def write(self) -> None:
        """Write new digests for other processes; without a writable cache they hash again."""
        if not self._new:
            return
        try:
            discard_unfinished(self._path)
            with replacing(self._path) as new:
                new.write_text(json.dumps({**self._read(), **self._new}), "utf-8")
        except (OSError, InputError) as error:
            logger.debug("Digests are not cached: %s", error)

    def _read(self) -> dict[str, tuple[str, float]]:
        if not self._path.exists():
            return {}
        try:
            entries = read_json_object(self._path, "digests are computed again", _CachedDigests)
        except InputError as error:
            logger.info("%s", error)
            return {}
        oldest = time.time() - CACHED_SECONDS_MAX
        return {key: (digest, at) for key, (digest, at) in entries.items() if at >= oldest}


def require_files(
    directory: Path, expected: Mapping[str, FileRecord], description: str, remedy: str
) -> None:
    """Raise ``InputError`` unless a directory holds the recorded files, unchanged.

    Messages end with ``remedy``: what to do about a missing or changed file.
    """
    for name, record in expected.items():
        path = directory / name
        if not path.is_file():
            raise InputError(f"{path}: this file of the model is missing; {remedy}")
        size = path.stat().st_size
        if size != record["bytes"]:
            raise InputError(
                f"{path}: {size:,} bytes, but {record['bytes']:,} were written; the file was "
                f"changed or is incomplete; {remedy}"
            )
    unknown = {path.name for path in directory.glob("*.safetensors")} - set(expected)
    if unknown:
        raise InputError(
            f"{directory / min(unknown)}: these weights were not written with the model, but would "
            f"be loaded with it; remove the file, or {remedy}"
        )
    found = file_checksums(directory, expected, description)
    for name, record in expected.items():
        if found[name]["sha256"] != record["sha256"]:
            raise InputError(
                f"{directory / name}: SHA-256 {found[name]['sha256']}, but {record['sha256']} was "
                f"written; the file was changed; {remedy}"
            )
