"""Check that the folders a run writes to can be written to."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ja_instruct.datasets.answer_store_dataset import AnswerStoreDataset
from ja_instruct.datasets.encoding_cache_dataset import EncodingCacheDataset
from kedro_cuda_runner.outputs import existing_parent, output_path
from kedro_cuda_runner.resources import is_gpu_node

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kedro.io import DataCatalog
    from kedro.pipeline.node import Node

# The reports and tables of the demo. Nodes that write models declare how much they write.
FREE_BYTES_MIN = 4_000_000
LISTED = 3


def filepath_of(dataset: Any) -> Path | None:
    """Return a dataset's file or directory, which Kedro's datasets keep in ``_filepath``."""
    filepath = getattr(dataset, "_filepath", None)
    return None if filepath is None else Path(str(filepath))


def folder_problems(nodes: Sequence[Node], catalog: DataCatalog) -> list[str]:
    """Return a problem for each reason why something cannot be written, with the names of what."""
    found: dict[str, list[str]] = {}
    for name, path in sorted(_written_paths(nodes, catalog)):
        reason = _find_reason(path.absolute().parent)
        if reason:
            found.setdefault(reason, []).append(f"'{name}'")
    return [
        f"{', '.join(names[:LISTED])}{', …' if len(names) > LISTED else ''} cannot be written: "
        f"{reason}"
        for reason, names in found.items()
    ]


def _written_paths(nodes: Sequence[Node], catalog: DataCatalog) -> Iterator[tuple[str, Path]]:
    for name in {name for node in nodes for name in node.outputs}:
        path = output_path(catalog.get(name))
        if path is not None:
            yield name, path
    for name in {name for node in nodes for name in node.inputs}:
        dataset: Any = catalog.get(name)
        if isinstance(dataset, AnswerStoreDataset | EncodingCacheDataset):
            yield name, dataset._filepath
    for node in filter(is_gpu_node, nodes):
        for name in (name for name in node.inputs if name.startswith("params:")):
            checkpoint_dir = getattr(catalog.load(name), "checkpoint_dir", None)
            if checkpoint_dir is not None:
                yield f"{name.removeprefix('params:')}.checkpoint_dir", Path(checkpoint_dir) / "x"


def _find_reason(folder: Path) -> str:
    """Return why no file can be created in a folder, which need not exist; empty if it can."""
    for one in (folder, *folder.parents):
        if one.is_symlink() and not one.exists():
            return f"{one} is a link to {one.readlink()}, which does not exist; correct the link"
    existing = existing_parent(folder)
    if not existing.is_dir():
        return f"{existing} is a file, so the folder {folder} cannot be created; move it away"
    if os.statvfs(existing).f_flag & os.ST_RDONLY:
        return f"{existing} is on a read-only file system; point 'filepath' elsewhere"
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"this user may not write to {existing}; change its permissions or its owner"
    free = shutil.disk_usage(existing).free
    if free < FREE_BYTES_MIN:
        return (
            f"the disk of {existing} has {free / 1e6:.1f} MB left; make room for at least "
            f"{FREE_BYTES_MIN / 1e6:.0f} MB"
        )
    return ""
