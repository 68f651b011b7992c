"""Fingerprints by content, of values, files, directories and datasets.

The digest of a large file is computed once. It is kept in ``.freshness/digests.json`` beside the
file or directory of the dataset, and valid while inode, size and times of the file stay the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash
from kedro.io import CachedDataset, MemoryDataset
from kedro.io.core import AbstractVersionedDataset, VersionNotFoundError

from kedro_freshness.files import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kedro.io import AbstractDataset

logger = logging.getLogger(__name__)

FOLDER = ".freshness"
DIGESTS = "digests.json"
# hashed in 20 ms at most, so that most inputs need no folder beside them
CACHED_BYTES_MIN = 1 << 24
LOGGED_BYTES_MIN = 2_000_000_000
BLOCK_BYTES = 1 << 22
# hashing releases the interpreter's lock; more threads than this wait for the disk
THREADS = 4
# The kernel updates file times only every 10 ms or so: a file that was modified more recently than
# this could be modified again without a visible change of its times.
UNSETTLED_SECONDS = 0.05


def fingerprint_value(value: Any) -> str:
    """Return the SHA-256 of a value's JSON, or of its pickle if it has none."""
    try:
        content = json.dumps(value, sort_keys=True).encode()
    except (TypeError, ValueError):
        content = pickle.dumps(value)
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def fingerprint_path(path: Path) -> str:
    """Return the XXH3 hash of a file, or of the names and contents of all files in a directory.

    Symbolic links are followed. Times, permissions and empty directories do not count.

    Raises:
        OSError: The path does not exist, or a file cannot be read.
    """
    names = [""] if path.is_file() else sorted(_names_in(path))
    if not names and not path.is_dir():
        raise FileNotFoundError(path)
    cache = _DigestCache(path)
    with ThreadPoolExecutor(THREADS) as pool:
        digests = list(pool.map(cache.digest, names))
    cache.write()
    if path.is_file():
        return f"xxh3:{digests[0]}"
    return fingerprint_value(list(zip(names, digests, strict=True)))


def fingerprint_dataset(dataset: AbstractDataset[Any, Any]) -> str | None:
    """Return the fingerprint of what a dataset holds now; None if it holds nothing.

    A dataset may define ``fingerprint()`` with the same result. Otherwise a local file or
    directory counts by its content, a ``MemoryDataset`` by its data, and any other dataset by its
    description in the catalog: changes of a remote table or file are not noticed.
    """
    try:
        return _fingerprint_dataset(unwrapped(dataset))
    except OSError as error:  # loading it fails too
        logger.debug("%s cannot be read: %s", dataset, error)
        return None


def _fingerprint_dataset(dataset: AbstractDataset[Any, Any]) -> str | None:
    own = getattr(dataset, "fingerprint", None)
    if callable(own):
        fingerprint: str | None = own()
        return fingerprint
    if isinstance(dataset, MemoryDataset):
        return fingerprint_value(dataset.load()) if dataset.exists() else None
    if not has_path(dataset):
        return fingerprint_value(str(dataset))
    path = location_of(dataset)
    if path is None:
        return None
    if "*" in str(path):
        found = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        return fingerprint_value([fingerprint_path(one) for one in found])
    return fingerprint_path(path) if path.exists() else None


def location_of(dataset: AbstractDataset[Any, Any], *, saving: bool = False) -> Path | None:
    """Return the local file or directory of a dataset; None for others.

    For a versioned dataset it is the version that is loaded, or, if ``saving``, the one that is
    saved; None if there is no version yet.
    """
    dataset = unwrapped(dataset)
    if not has_path(dataset):
        return None
    if isinstance(dataset, AbstractVersionedDataset) and dataset._version:
        try:
            return Path(str(dataset._get_save_path() if saving else dataset._get_load_path()))
        except VersionNotFoundError:
            return None
    return Path(str(_path_attribute(dataset)))


def has_path(dataset: AbstractDataset[Any, Any]) -> bool:
    """Return whether a dataset is a local file or directory, by the attributes Kedro's have."""
    protocol = getattr(dataset, "_protocol", "file")
    return _path_attribute(dataset) is not None and protocol in ("file", "local", "")


def unwrapped(dataset: AbstractDataset[Any, Any]) -> AbstractDataset[Any, Any]:
    """Return the dataset in a ``CachedDataset``."""
    return dataset._dataset if isinstance(dataset, CachedDataset) else dataset


def _path_attribute(dataset: AbstractDataset[Any, Any]) -> Any:
    path = getattr(dataset, "_filepath", None)
    return getattr(dataset, "_path", None) if path is None else path


def _names_in(directory: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(directory, followlinks=True):
        folders[:] = [name for name in folders if name != FOLDER]
        for name in files:
            yield (Path(folder) / name).relative_to(directory).as_posix()


class _DigestCache:
    """Hashes of the files of one dataset.

    Two processes that write at the same time may lose each other's entries, which are then
    computed again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.parent / FOLDER / DIGESTS
        known = read_json(self._file) or {}
        self._known = {key: value for key, value in known.items() if isinstance(value, list)}
        self._used: dict[str, list[Any]] = {}
        self._is_logged = False

    def digest(self, name: str) -> str:
        """Return the hexadecimal XXH3 hash of a file, by its name relative to the dataset."""
        path = self._path / name
        version = _version_of(path)
        size = version[0]
        key = (Path(self._path.name) / name).as_posix()
        known = self._known.get(key, [])
        if len(known) == 2 and known[0] == version:
            self._used[key] = known
            return str(known[1])
        if size >= LOGGED_BYTES_MIN and not self._is_logged:
            self._is_logged = True
            logger.info("Fingerprinting %s, once", self._path)
        digest = xxhash.xxh3_128()  # hashes as fast as memory is read
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
        if size >= CACHED_BYTES_MIN and _has_settled(path, version):
            self._used[key] = [version, digest.hexdigest()]
        return digest.hexdigest()

    def write(self) -> None:
        """Keep the digests of large files; drop those of files that are gone."""
        own = f"{self._path.name}/"
        others = {
            key: value
            for key, value in self._known.items()
            if key != self._path.name and not key.startswith(own)
        }
        kept = {**others, **self._used}
        if kept == self._known:
            return
        try:
            write_json(self._file, kept)
        except OSError as error:  # the files of a read-only folder are hashed each time
            logger.debug("Digests are not kept: %s", error)


def _version_of(path: Path) -> list[int]:
    stat = path.stat()
    # ctime cannot be set back, so a changed file is noticed even if its mtime is restored
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _has_settled(path: Path, version: list[int]) -> bool:
    """Wait until another change of the file would show in its times; return whether it did not."""
    age = time.time() - max(version[1:3]) / 1e9
    if 0 <= age < UNSETTLED_SECONDS:
        time.sleep(UNSETTLED_SECONDS - age)
    return _version_of(path) == version
