"""What a run and the command ``status`` print about the outputs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from kedro_freshness.recipes import stored

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterable, Sequence

    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node

    from kedro_freshness.inspection import Inspection, Kind, Remakes, State

REASONS_SHOWN = 3
NAMES_SHOWN = 5
LABELS: dict[Kind, str] = {
    "fresh": "fresh",
    "stale": "stale",
    "missing": "missing",
    "unknown": "of unknown origin",
}


def summary(states: Iterable[State]) -> str:
    """Return the number of outputs of each kind: ``3 fresh, 1 stale``."""
    counts = Counter(state.kind for state in states)
    return ", ".join(f"{counts[kind]} {text}" for kind, text in LABELS.items() if counts[kind])


def reasons(state: State) -> str:
    """Return why an output is stale, in one line."""
    texts = [*state.differences, *(f"{name} is stale" for name in state.stale_inputs)]
    return _limited(texts, "; ")


def log_remakes(
    logger: logging.Logger, inspection: Inspection, pipeline: Pipeline, remakes: Remakes
) -> None:
    """Log what a run with ``--only-missing-outputs`` makes again and why, and what it trusts."""
    names = [
        name
        for node in pipeline.nodes
        for name in node.outputs
        if inspection.recipes.is_persisted(name)
    ]
    states = [inspection.state(name) for name in names]
    logger.info("Outputs: %s", summary(states))
    for text, group in _grouped(remakes.stale).items():
        logger.info("Made again: %s: %s", ", ".join(group), text)
    for node, replaced in remakes.replaced.items():
        if replaced:
            missing = remakes.missing[node]
            logger.info(
                "Made again, as node '%s' makes them together%s: %s",
                node,
                f" with {', '.join(missing)}, which {_are(missing)} missing" if missing else "",
                ", ".join(replaced),
            )
    if remakes.dependent:
        logger.info("Made again, because their inputs are: %s", ", ".join(remakes.dependent))
    again = remakes.outputs
    taken = [state for state in states if state.name not in again]
    unknown = [state.name for state in taken if state.kind == "unknown"]
    if unknown:
        logger.info(
            "Of unknown origin, taken as they are: %s. To make them again, remove them, or run "
            "without --only-missing-outputs",
            _counted(unknown),
        )
    for state in taken:
        owner = inspection.owner(state.name)
        if state.kind == "stale" and owner:
            logger.warning(
                "%s is read as environment '%s' made it: %s",
                state.name,
                owner.environment,
                reasons(state),
            )
        elif state.kind == "stale":
            logger.warning(
                "%s stays stale, as this run does not make its inputs again: %s",
                state.name,
                reasons(state),
            )
    _log_notes(logger, [state for state in taken if state.notes])


def log_stale_inputs(logger: logging.Logger, inspection: Inspection, nodes: Sequence[Node]) -> None:
    """Warn of stale outputs of earlier runs that a run reads."""
    made = {stored(name) for node in nodes for name in node.outputs}
    readers_by_name: dict[str, list[str]] = {}
    for node in nodes:
        for name in inspection.recipes.of(node).inputs:
            if stored(name) not in made and inspection.recipes.producer(name):
                readers_by_name.setdefault(name, []).append(node.name)
    for name, readers in sorted(readers_by_name.items()):
        if inspection.record(name) is None or inspection.owner(name):
            continue
        state = inspection.state(name)
        if state.kind == "stale":
            logger.warning(
                "%s, an input of %s, is stale: %s. To make it again, run its pipeline, or all with "
                "--only-missing-outputs",
                name,
                ", ".join(readers),
                reasons(state),
            )


def shortened(path: Path | None) -> str:
    """Return a path relative to the working directory if it is below it."""
    if path is None:
        return ""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _log_notes(logger: logging.Logger, states: Sequence[State]) -> None:
    if not states:
        return
    changes = list(dict.fromkeys(note for state in states for note in state.notes))
    logger.info(
        "Made with other code or libraries, but kept: %s (%s). "
        "--params=freshness.count_code=true makes them again",
        _counted([state.name for state in states]),
        _limited(changes, "; "),
    )


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _counted(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= NAMES_SHOWN else f"{len(names)} outputs"


def _grouped(reasons_by_name: dict[str, tuple[str, ...]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, texts in reasons_by_name.items():
        groups.setdefault(_limited(texts, "; "), []).append(name)
    return groups


def _limited(texts: Sequence[str], separator: str) -> str:
    shown = separator.join(texts[:REASONS_SHOWN])
    more = len(texts) - REASONS_SHOWN
    return f"{shown}; and {more} more" if more > 0 else shown
