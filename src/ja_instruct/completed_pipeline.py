"""A pipeline of which any part can be run alone."""

from __future__ import annotations

import logging
from typing import Any

from kedro.pipeline import Pipeline

from ja_instruct.pipelines.data_filtering.pipeline import NOT_SAVED

logger = logging.getLogger(__name__)


class CompletedPipeline(Pipeline):  # type: ignore[misc]
    """A pipeline whose parts have the nodes that make what no catalog entry saves.

    ``kedro run --nodes=split_pairs`` would lack the results of the nodes before, which are passed
    in memory alone, as saving them takes longer than making them again.
    """

    def __add__(self, other: Pipeline) -> CompletedPipeline:
        """Return the nodes of both, whose parts are completed too."""
        return CompletedPipeline({*self.nodes, *other.nodes})

    __radd__ = __add__  # Kedro's session adds the chosen pipelines to an empty one

    def filter(self, *args: Any, **kwargs: Any) -> Pipeline:
        """Return the part that Kedro's arguments choose, and what it needs of ``NOT_SAVED``."""
        chosen = part = super().filter(*args, **kwargs)
        while missing := NOT_SAVED & part.inputs() & self.all_outputs():
            part += self.only_nodes_with_outputs(*missing)
        if added := [node.name for node in (part - chosen).nodes]:
            logger.info("Also run, as their results are not saved: %s", ", ".join(added))
        return part
