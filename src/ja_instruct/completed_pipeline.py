"""A pipeline of which any part can be run alone."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from kedro.pipeline import Pipeline

from ja_instruct.config import did_you_mean
from ja_instruct.errors import InputError
from ja_instruct.pipelines.data_filtering.pipeline import NOT_SAVED

if TYPE_CHECKING:
    from collections.abc import Iterable

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
        """Return the part that Kedro's arguments choose, and what it needs of ``NOT_SAVED``.

        Raises:
            InputError: An argument names what the pipeline lacks, or no node is chosen.
        """
        try:
            chosen = part = super().filter(*args, **kwargs)
        except ValueError as error:
            raise InputError(self._explain(error, **kwargs)) from error
        while missing := NOT_SAVED & part.inputs() & self.all_outputs():
            part += self.only_nodes_with_outputs(*missing)
        if added := [node.name for node in (part - chosen).nodes]:
            logger.info("Also run, as their results are not saved: %s", ", ".join(added))
        return part

    def _explain(self, error: ValueError, **arguments: Iterable[str] | None) -> str:
        names = {node.name for node in self.nodes}
        kinds = {
            "node": (names, ("from_nodes", "to_nodes", "node_names")),
            "dataset": (
                {name for name in self.datasets() if ":" not in name},
                ("from_inputs", "to_outputs"),
            ),
            "tag": ({tag for node in self.nodes for tag in node.tags}, ("tags",)),
        }
        problems = [
            f"no {kind} of the chosen pipeline is named '{name}'"
            + (did_you_mean(name, known) or f"; its {kind}s: {', '.join(sorted(known)) or 'none'}")
            for kind, (known, keys) in kinds.items()
            for key in keys
            for name in arguments.get(key) or ()
            if name not in known and not name.startswith("params:")
        ]
        return "\n".join(problems) or str(error)
