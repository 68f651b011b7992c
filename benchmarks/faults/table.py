"""The figures of all trials, by pipeline and runner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.faults.trial import Result
from benchmarks.faults.trials import CELLS
from benchmarks.harness.recording import print_table

COLUMNS = ("trials", "kills", "resumed", "equal", "different", "not resumed", "other problems")


def counts(results: Iterable[Result]) -> dict[str, int]:
    """Return how many trials there are of each kind."""
    found = Counter(dict.fromkeys(COLUMNS, 0))
    for result in results:
        found["trials"] += 1
        found["kills"] += result.kills
        found["resumed"] += result.resumed
        found["equal"] += result.resumed and not result.different
        found["different"] += bool(result.different)
        found["not resumed"] += not result.resumed
        found["other problems"] += result.resumed and bool(result.problems)
    return dict(found)


def _kind(result: Result) -> str:
    kinds = "+".join(dict.fromkeys(moment.kind for moment in result.trial.moments))
    return f"SIG{result.trial.signal} to {result.trial.victims}, {kinds}"


def print_cells(results: Sequence[Result]) -> None:
    """Print a line per pipeline and runner, per kind of kill, and per file that differs."""
    rows = {
        f"{pipeline}, {runner}": [
            one for one in results if (one.trial.pipeline, one.trial.runner) == (pipeline, runner)
        ]
        for pipeline, runner in CELLS
    }
    columns = {name: name for name in COLUMNS}
    cells = {name: counts(of_cell) for name, of_cell in rows.items() if of_cell}
    print_table({**cells, "all": counts(results)}, columns, "pipeline and runner")
    kinds = {
        kind: counts(one for one in results if _kind(one) == kind)
        for kind in sorted(map(_kind, results))
    }
    print_table(kinds, columns, "kind")
    files = Counter(path for result in results for path in result.different)
    if files:
        print_table(
            {path: {"trials": count} for path, count in files.most_common()},
            {"trials": "trials"},
            "file that differs",
        )


def summarize(results: Sequence[Result], *, seed: int) -> dict[str, Any]:
    """Return the figures for the JSON line."""
    by_cell = {}
    for pipeline, runner in CELLS:
        of_cell = [
            one for one in results if (one.trial.pipeline, one.trial.runner) == (pipeline, runner)
        ]
        if of_cell:
            by_cell[f"{pipeline} {runner}"] = counts(of_cell)
    return {
        "seed": seed,
        **counts(results),
        "cold": sum(result.trial.is_cold for result in results),
        "killed_resumes": sum(max(0, result.kills - 1) for result in results),
        "other_parameters": sum(result.trial.is_changed for result in results),
        "refused": sum(result.refused for result in results),
        "files": dict(Counter(path for result in results for path in result.different)),
        "bad_trials": [result.trial.number for result in results if result.is_bad],
        "by_pipeline_and_runner": by_cell,
    }
