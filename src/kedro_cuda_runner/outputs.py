"""What a node was saving when its process ended."""

from __future__ import annotations

import glob
import inspect
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io import AbstractVersionedDataset

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol
    from kedro.pipeline.node import Node

logger = logging.getLogger(__name__)

# inode, time of change and size of a file, or of a directory and all that is in it, by path
State = dict[Path, tuple[int, int, int]]


def output_path(dataset: Any) -> Path | None:
    """Return where a dataset saves, if that is a local file or directory."""
    filepath = getattr(dataset, "_filepath", None)
    if filepath is None or getattr(dataset, "_protocol", "file") not in ("file", "local", ""):
        return None
    is_versioned = isinstance(dataset, AbstractVersionedDataset)
    if is_versioned and (version := dataset.resolve_save_version()):
        filepath = dataset._get_versioned_path(version)
    return Path(str(filepath))


def _can_be_removed(dataset: Any) -> bool:
    return hasattr(dataset, "discard_unfinished") or output_path(dataset) is not None


def _places(dataset: Any) -> list[Path]:
    """Return the files or directories that a dataset has, of a versioned one every version.

    The version that a process will save is not known before unless the catalog pins it.
    """
    path = output_path(dataset)
    if path is None:
        return []
    is_versioned = isinstance(dataset, AbstractVersionedDataset) and dataset._version
    places = path.parent.parent.glob(f"*/{glob.escape(path.name)}") if is_versioned else [path]
    return [place for place in places if place.exists() or place.is_symlink()]


def _state(path: Path) -> State:
    # a directory's own time does not tell of a file in it that was written anew
    below = path.rglob("*") if path.is_dir() else ()
    state = {}
    for one in (path, *below):
        stat = one.lstat()
        state[one] = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
    return state


def _remove(path: Path, dataset: Any) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    if isinstance(dataset, AbstractVersionedDataset) and dataset._version:
        folder = path.parent
        if not any(folder.iterdir()):
            folder.rmdir()


class OutputWatch:
    """Knows which outputs of a node are being saved, and removes what is left unfinished.

    Kedro's ``--only-missing-outputs`` takes whatever exists for finished.
    """

    def __init__(self, node: Node, catalog: CatalogProtocol[Any, Any]) -> None:
        """Note what the outputs look like before the node runs."""
        self._node = node
        self._catalog = catalog
        self._before = {
            name: {place: _state(place) for place in _places(catalog.get(name))}
            for name in node.outputs
        }
        self._saving: dict[str, None] = {}
        # a generator saves an output piece by piece, and only its end tells that it is complete
        self._is_in_pieces = inspect.isgeneratorfunction(node.func)

    def saving(self, name: str) -> None:
        """Note that an output is being saved."""
        self._saving[name] = None

    def saved(self, name: str, was_saved_here: bool) -> None:
        """Note that it is saved.

        Args:
            name: The output.
            was_saved_here: Whether this process saved it; if not, what it knows of the versions is
                out of date.
        """
        if not self._is_in_pieces:
            self._saving.pop(name, None)
        if not was_saved_here:
            self._catalog.release(name)

    def unfinished(self) -> list[str]:
        """Return the outputs that were begun and not finished, and that can be removed."""
        return [name for name in self._saving if _can_be_removed(self._catalog.get(name))]

    def discard_unfinished(self) -> None:
        """Remove what was written of them.

        A dataset that writes beside its target first says how to tidy up, in a method
        ``discard_unfinished``; of others the file or directory itself is removed if it has
        changed. Where that is impossible a warning names it.
        """
        for name in self._saving:
            dataset: Any = self._catalog.get(name)
            tidy = getattr(dataset, "discard_unfinished", None)
            try:
                if tidy is not None:
                    tidy()
                elif output_path(dataset) is not None:
                    self._remove_new(name, dataset)
                elif not getattr(dataset, "_EPHEMERAL", False):
                    self._warn(name, getattr(dataset, "_filepath", None) or dataset)
            except OSError as error:
                self._warn(name, error)

    def _remove_new(self, name: str, dataset: Any) -> None:
        for place in _places(dataset):
            if self._before[name].get(place) != _state(place):
                _remove(place, dataset)

    def _warn(self, name: str, what: Any) -> None:
        logger.warning(
            "'%s' of node '%s' may be half-written: %s; remove it before a run with "
            "--only-missing-outputs",
            name,
            self._node.name,
            what,
        )
