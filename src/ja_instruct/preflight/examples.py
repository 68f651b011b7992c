"""Compare the number of few-shot examples with the pool that they are taken from."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ja_instruct.memory.resources import parameters_of
from ja_instruct.pipelines.inference.nodes import build_prompts
from ja_instruct.preflight.folders import filepath_of
from ja_instruct.tables.columns import as_dataset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kedro.io import DataCatalog
    from kedro.pipeline.node import Node

logger = logging.getLogger(__name__)


def warn_of_small_pools(nodes: Sequence[Node], catalog: DataCatalog) -> None:
    """Log a warning for each node that needs more examples for a prompt than its pool has."""
    made = {output for node in nodes for output in node.outputs}
    for node in (node for node in nodes if node.func is build_prompts):
        _, pool, index, *_ = node.inputs
        section, parameters = parameters_of(node, catalog, "inference")
        size = _pool_size(pool, index if index not in made else None, catalog)
        if size is not None and parameters.top_k > size:
            logger.warning(
                "'%s.top_k' is %d, but '%s' has %d pairs: each task gets all of them as examples",
                section,
                parameters.top_k,
                pool,
                size,
            )


def _pool_size(pool: str, index: str | None, catalog: DataCatalog) -> int | None:
    """Return the number of pairs, or None if the pool is on the hub and not indexed yet."""
    if index is not None:
        return len(catalog.load(index).questions)
    path = filepath_of(catalog.get(pool))
    if path is None or not path.exists():
        return None
    return len(as_dataset(catalog.load(pool), pool))
