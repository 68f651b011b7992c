"""The outputs that a node was saving when its process ended."""

from __future__ import annotations

import glob
import inspect
import logging
import shutil
from pathlib import Path
from typing import Any

from kedro.io import AbstractVersionedDataset, CatalogProtocol
from kedro.pipeline.node import Node

logger = logging.getLogger(__name__)

# inode, modification time and size of a path and everything below it
State = dict[Path, tuple[int, int, int]]


def output_path(dataset: Any) -> Path | None:
    """Return the local file or directory to which a dataset saves; None if there is none."""
    filepath = getattr(dataset, "_filepath", None)
    if filepath is None or getattr(dataset, "_protocol", "file") not in ("file", "local", ""):
        return None
    is_versioned = isinstance(dataset, AbstractVersionedDataset)
    if is_versioned and (version := dataset.resolve_save_version()):
        filepath = dataset._get_versioned_path(version)
    return Path(str(filepath))


def existing_parent(path: Path) -> Path:
    """Return ``path`` or its nearest parent that exists: the disk that ``path`` will be on."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _is_versioned(dataset: Any) -> bool:
    return isinstance(dataset, AbstractVersionedDataset) and bool(dataset._version)


def _existing_paths(dataset: Any) -> list[Path]:
    """Return the dataset's existing files or directories, all versions of a versioned one.

    The version that a process will save is unknown unless the catalog fixes it.
    """
    path = output_path(dataset)
    if path is None:
        return []
    pattern = f"*/{glob.escape(path.name)}"
    paths = path.parent.parent.glob(pattern) if _is_versioned(dataset) else [path]
    return [one for one in paths if one.exists() or one.is_symlink()]


def _state(path: Path) -> State:
    # a directory's own time does not change when a file in it is overwritten
    below = path.rglob("*") if path.is_dir() else ()
    stats = {one: one.lstat() for one in (path, *below)}
    return {one: (stat.st_ino, stat.st_mtime_ns, stat.st_size) for one, stat in stats.items()}


def _remove(path: Path, *, is_version: bool) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    if is_version and not any(path.parent.iterdir()):
        path.parent.rmdir()


class OutputWatch:
    """Tracks which outputs of a node are being saved, and removes those that are left unfinished.

    Create it before the node runs. Kedro's ``--only-missing-outputs`` takes any existing output for
    finished.
    """

    def __init__(self, node: Node, catalog: CatalogProtocol[Any, Any]) -> None:
        self._node = node
        self._catalog = catalog
        self._before = {
            name: {path: _state(path) for path in _existing_paths(catalog.get(name))}
            for name in node.outputs
        }
        self._saving: dict[str, None] = {}
        # a generator saves an output in chunks, and it is complete only when the node ends
        self._is_in_chunks = inspect.isgeneratorfunction(node.func)

    def saving(self, name: str) -> None:
        """Record that an output is being saved."""
        self._saving[name] = None

    def saved(self, name: str, was_saved_here: bool) -> None:
        """Record that an output is saved; if not by this process, its cached versions are stale."""
        if not self._is_in_chunks:
            self._saving.pop(name, None)
        if not was_saved_here:
            self._catalog.release(name)

    def discard_unfinished(self) -> list[str]:
        """Remove what was written of the unfinished outputs; return those that can be removed.

        A dataset that writes to a temporary path first has a method ``discard_unfinished``; of
        others the file or directory is removed if it has changed. If that is impossible, a warning
        names it.
        """
        removed = list(self._saving)
        for name in self._saving:
            dataset: Any = self._catalog.get(name)
            discard = getattr(dataset, "discard_unfinished", None)
            try:
                if discard is not None:
                    discard()
                elif output_path(dataset) is not None:
                    for path in _existing_paths(dataset):
                        if self._before[name].get(path) != _state(path):
                            _remove(path, is_version=_is_versioned(dataset))
                else:
                    removed.remove(name)
                    if not getattr(dataset, "_EPHEMERAL", False):
                        self._warn(name, getattr(dataset, "_filepath", None) or dataset)
            except OSError as error:
                self._warn(name, error)
        return removed

    def _warn(self, name: str, reason: Any) -> None:
        logger.warning(
            "'%s' of node '%s' may be half-written: %s; remove it before a run with "
            "--only-missing-outputs",
            name,
            self._node.name,
            reason,
        )
