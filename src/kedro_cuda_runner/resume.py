"""The command that goes on where a run ended."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.runner.runner import _find_nodes_to_resume_from

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from kedro.io import CatalogProtocol
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node

# what chooses a run's beginning, by the names that ``kedro run`` knows it by
REPLACED_OPTIONS = ("--from-nodes", "--from-inputs")


def resume_command(
    pipeline: Pipeline, done: Collection[Node], catalog: CatalogProtocol[Any, Any]
) -> str:
    """Return the command line that runs what is left of ``pipeline``.

    Kedro finds the nodes to begin with: the nearest ones whose inputs are saved. Outside of
    ``kedro run`` the command is the plain one with them.
    """
    arguments = _arguments_of_kedro_run(sys.argv)
    if not done:
        return shlex.join(["kedro", *arguments])
    left = set(pipeline.nodes) - set(done)
    beginning = sorted(_find_nodes_to_resume_from(pipeline, left, catalog))
    return shlex.join(
        ["kedro", *_without_beginning(arguments), f"--from-nodes={','.join(beginning)}"]
    )


def _arguments_of_kedro_run(argv: Sequence[str]) -> list[str]:
    program = Path(argv[0])
    is_kedro = program.name == "kedro" or program.parent.name == "kedro"
    return list(argv[1:]) if is_kedro and "run" in argv[1:] else ["run"]


def _without_beginning(arguments: Sequence[str]) -> list[str]:
    """Leave out the options that say where to begin.

    >>> _without_beginning(["run", "--from-nodes", "a,b", "--env=demo", "--from-inputs=c"])
    ['run', '--env=demo']
    """
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in REPLACED_OPTIONS:
            skip = True
        elif not argument.startswith(tuple(f"{option}=" for option in REPLACED_OPTIONS)):
            kept.append(argument)
    return kept
