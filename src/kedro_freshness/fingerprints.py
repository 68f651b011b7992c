"""Fingerprints by content, of values, files, directories and datasets.

The digests of the files of a large dataset are computed once. They are kept in
``.freshness/digests.json`` beside its file or directory, and valid while inode, size and times of
the files stay the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import re
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash
from kedro.io import CachedDataset, MemoryDataset
from kedro.io.core import AbstractVersionedDataset, DatasetError

from kedro_freshness.files import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
    """Return the SHA-256 of a value's JSON, or of its pickle if it has none.

    Raises:
        Exception: The value can be neither written as JSON nor pickled.
    """
    try:
        content = json.dumps(value, sort_keys=True, default=_sorted).encode()
    except (TypeError, ValueError, RecursionError):
        content = pickle.dumps(value)
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def fingerprint_path(path: Path) -> str:
    """Return the XXH3 hash of a file, or of the names and contents of all files in a directory.

    Symbolic links are followed. Times, permissions and empty directories do not count.

    Raises:
        OSError: The path does not exist, or a file cannot be read.
    """
    is_file = path.is_file()
    names = [""] if is_file else sorted(_names_in(path))
    cache = _DigestCache(path, names)
    if cache.is_large:
        with ThreadPoolExecutor(THREADS) as pool:
            digests = list(pool.map(cache.digest, names))
    else:  # sooner done than threads are started
        digests = [cache.digest(name) for name in names]
    cache.write()
    if is_file:
        return f"xxh3:{digests[0]}"
    return fingerprint_value(list(zip(names, digests, strict=True)))


def fingerprint_dataset(dataset: AbstractDataset[Any, Any], path: Path | None = None) -> str | None:
    """Return the fingerprint of what a dataset holds now; None if it holds nothing.

    A dataset may define ``fingerprint()`` with the same result. Otherwise a local file or
    directory counts by its content, a ``MemoryDataset`` by its data, and any other dataset by its
    description in the catalog: changes of a remote table or file are not noticed.

    Args:
        dataset: The dataset.
        path: Its file or directory if that is another one than it loads, as after saving a version.
    """
    try:
        return _fingerprint_dataset(unwrapped(dataset), path)
    except OSError as error:  # loading it fails too
        logger.debug("%s cannot be read: %s", dataset, error)
        return None


def _fingerprint_dataset(dataset: AbstractDataset[Any, Any], path: Path | None) -> str | None:
    if has_own_fingerprint(dataset):
        fingerprint: str | None = dataset.fingerprint()  # type: ignore[attr-defined]
        return fingerprint
    if isinstance(dataset, MemoryDataset):
        return _fingerprint_memory(dataset)
    if not has_path(dataset):
        return fingerprint_value(without_addresses(str(dataset)))
    path = path or location_of(dataset)
    if path is None:
        return None
    if "*" in str(path) and not path.exists():
        found = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        return fingerprint_value([fingerprint_path(one) for one in found]) if found else None
    return fingerprint_path(path) if path.exists() else None


def _fingerprint_memory(dataset: MemoryDataset) -> str | None:
    if not dataset.exists():
        return None
    data = dataset.load()
    try:
        return fingerprint_value(data)
    except Exception:  # pickle calls the methods of any object
        return fingerprint_value(without_addresses(repr(data)))


def has_own_fingerprint(dataset: AbstractDataset[Any, Any]) -> bool:
    """Return whether a dataset defines ``fingerprint()``."""
    return callable(getattr(dataset, "fingerprint", None))


def without_addresses(text: str) -> str:
    """Return a description of Python objects without what differs in each process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def location_of(dataset: AbstractDataset[Any, Any], *, saving: bool = False) -> Path | None:
    """Return the local file or directory of a dataset; None for others.

    For a versioned dataset it is the version that is loaded; None if there is no version yet. If
    ``saving``, it is the version that is saved; None if that is not fixed before it is saved.
    """
    dataset = unwrapped(dataset)
    if not has_path(dataset):
        return None
    if isinstance(dataset, AbstractVersionedDataset) and dataset._version:
        return _location_of_version(dataset, saving=saving)
    return Path(str(_path_attribute(dataset)).removeprefix("file://"))


def _location_of_version(
    dataset: AbstractVersionedDataset[Any, Any], *, saving: bool
) -> Path | None:
    if saving:
        version = dataset._version.save if dataset._version else None
        return Path(str(dataset._get_versioned_path(version))) if version else None
    # the dataset keeps the newest version that it finds, and would not find the next one
    kept = dataset._cached_load_version
    try:
        return Path(str(dataset._get_load_path()))
    except DatasetError:  # there is none
        return None
    finally:
        dataset._cached_load_version = kept


def has_path(dataset: AbstractDataset[Any, Any]) -> bool:
    """Return whether a dataset is a local file or directory, by the attributes Kedro's have."""
    protocol = getattr(dataset, "_protocol", "") or getattr(dataset, "_fs_prefix", "")
    is_local = protocol in ("file", "local", "", "file://")
    return is_local and _path_attribute(dataset) is not None


def unwrapped(dataset: AbstractDataset[Any, Any]) -> AbstractDataset[Any, Any]:
    """Return the dataset in a ``CachedDataset``."""
    return dataset._dataset if isinstance(dataset, CachedDataset) else dataset


def _path_attribute(dataset: AbstractDataset[Any, Any]) -> Any:
    path = getattr(dataset, "_filepath", None)
    return getattr(dataset, "_path", None) if path is None else path


def _sorted(value: Any) -> list[Any]:
    """Return a set, whose order differs in each process, as a list."""
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    raise TypeError(f"{type(value).__name__} is not a set")


def _names_in(directory: Path) -> Iterator[str]:
    """Yield the names of all files below a directory; links to directories above end there."""
    pending: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(directory),))]
    while pending:
        prefix, parents = pending.pop()
        for entry in os.scandir(directory / prefix):
            if not entry.is_dir():
                yield prefix + entry.name
            elif entry.name != FOLDER:
                link = entry.is_symlink()
                target = os.path.realpath(entry) if link else f"{parents[-1]}/{entry.name}"
                if target not in parents:
                    pending.append((f"{prefix}{entry.name}/", (*parents, target)))


class _DigestCache:
    """Hashes of the files of one dataset.

    Two processes that write at the same time may lose each other's entries, which are then
    computed again.

    Args:
        path: The file or directory.
        names: The files, relative to ``path``.

    Attributes:
        is_large: Whether the digests are kept.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self._path = path
        self._file = path.parent / FOLDER / DIGESTS
        self._versions = {name: _version_of(path / name) for name in names}
        self._size = sum(version[0] for version in self._versions.values())
        self.is_large = self._size >= CACHED_BYTES_MIN
        self._known = (read_json(self._file) or {}) if self.is_large else {}
        self._used: dict[str, list[Any]] = {}
        self._is_logged = self._size < LOGGED_BYTES_MIN

    def digest(self, name: str) -> str:
        """Return the hexadecimal XXH3 hash of a file."""
        path, version = self._path / name, self._versions[name]
        key = (Path(self._path.name) / name).as_posix()
        match self._known.get(key):
            case [known, str(kept)] if known == version:
                self._used[key] = [known, kept]
                return kept
        if not path.is_file():
            return _digest_of_special_file(path)
        if not self._is_logged:
            self._is_logged = True
            logger.info("Fingerprinting %s, once", self._path)
        digest = xxhash.xxh3_128()  # hashes as fast as memory is read
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
        if self.is_large and _has_settled(path, version):
            self._used[key] = [version, digest.hexdigest()]
        return digest.hexdigest()

    def write(self) -> None:
        """Keep the digests of large datasets; drop those of files that are gone."""
        if not self.is_large:
            return
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


def _digest_of_special_file(path: Path) -> str:
    """Return a digest of a link that leads nowhere by its target, of others by their type."""
    mode = path.lstat().st_mode
    content = (
        os.fsencode(path.readlink()) if stat.S_ISLNK(mode) else str(stat.S_IFMT(mode)).encode()
    )
    return hashlib.sha256(content).hexdigest()


def _version_of(path: Path) -> list[int]:
    try:
        found = path.stat()
    except OSError:  # a link that leads nowhere
        found = path.lstat()
    # ctime cannot be set back, so a changed file is noticed even if its mtime is restored
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _has_settled(path: Path, version: list[int]) -> bool:
    """Wait until another change of the file would show in its times; return whether it did not."""
    age = time.time() - max(version[1:3]) / 1e9
    if 0 <= age < UNSETTLED_SECONDS:
        time.sleep(UNSETTLED_SECONDS - age)
    return _version_of(path) == version
