"""The command that resumes a run."""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from kedro.framework import project
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro.runner.runner import _find_nodes_to_resume_from


def resume_command(
    pipeline: Pipeline, done: Collection[Node], catalog: CatalogProtocol[Any, Any]
) -> str:
    """Return the command line that runs the remaining nodes of ``pipeline``.

    It has the options of this ``kedro run``, if any, and starts from the nodes that Kedro finds:
    the nearest ones whose inputs are saved.
    """
    arguments = _arguments_of_kedro_run(sys.argv)
    if not done:
        return shlex.join(["kedro", *arguments])
    remaining = set(pipeline.nodes) - set(done)
    start = sorted(_find_nodes_to_resume_from(pipeline, remaining, catalog))
    replaced = ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--from-nodes", "--from-inputs"):
        replaced.add_argument(option)
    kept = replaced.parse_known_args(arguments)[1]
    return shlex.join(["kedro", *kept, f"--from-nodes={','.join(start)}"])


def this_command(option: str) -> str:
    """Return the command line of this ``kedro run``, if any, with ``option`` in it."""
    arguments = _arguments_of_kedro_run(sys.argv)
    return shlex.join(["kedro", *arguments, *({option} - set(arguments))])


def _arguments_of_kedro_run(argv: Sequence[str]) -> list[str]:
    program, arguments = Path(argv[0]), list(argv[1:])
    if program.name == "__main__.py" and program.parent.name == project.PACKAGE_NAME:
        return ["run", *arguments]  # python -m my_project
    # Kedro replaces the path of its __main__.py
    is_kedro = program.name in ("kedro", "python -m kedro")
    return arguments if is_kedro and "run" in arguments else ["run"]
