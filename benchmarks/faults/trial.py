"""One trial: run, kill, resume, compare."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults.processes import Run, kill_all, wait_for_orphans
from benchmarks.faults.references import References, arguments
from benchmarks.faults.trials import AIMED, Moment, Trial
from benchmarks.harness.outputs import differences, output_files

STORE = "data/mlflow/mlflow.db"
# a run that another one holds off names its process
REFUSED = re.compile(r"process (id )?\d+|pid \d+", re.IGNORECASE)
ATTEMPTS = 3
# what the making of the tracking store takes, at most
STORE_SECONDS = 2.5
NODES_IN_PROCESSES = {"__default__": 5, "quantization": 2, "sft": 1, "inference": 2}


@dataclass
class Result:
    """What came of a trial.

    Attributes:
        trial: The trial.
        kills: How many runs were killed; an aimed moment may not come.
        refused: How often a resume was refused because processes of the killed run were alive.
        resumed: Whether the last resume succeeded.
        different: By path, how the outputs differ from those of the undisturbed run.
        problems: What else is wrong.
        seconds: The time of the trial.
    """

    trial: Trial
    kills: int = 0
    refused: int = 0
    resumed: bool = False
    different: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_bad(self) -> bool:
        """Return whether something is wrong."""
        return not self.resumed or bool(self.different or self.problems)

    def describe(self) -> str:
        """Return the result: one line, and further ones for what is wrong."""
        end = "equal" if self.resumed and not self.different else "DIFFERENT"
        if not self.resumed:
            end = "NOT RESUMED"
        waited = f", refused {self.refused} times" if self.refused else ""
        first = (
            f"{self.trial.number:4d} {self.kills} kills{waited}, {end} "
            f"({self.trial.describe()}; {self.seconds:.0f} s)"
        )
        wrong = [f"     {path}: {text}" for path, text in self.different.items()]
        return "\n".join([first, *wrong, *(f"     {problem}" for problem in self.problems)])


def run_trial(trial: Trial, references: References, server: str) -> Result:
    """Run a trial in the work folder of ``references``."""
    result = Result(trial)
    started = time.monotonic()
    project = references.begin(trial.pipeline, has_store=trial.has_store)
    finished = len(run_statuses(project, "FINISHED"))
    for number, moment in enumerate(trial.moments):
        changed = trial.is_changed and number > 0
        aim = _aim(trial, moment, references)
        command = arguments(trial.pipeline, trial.runner, changed=changed)
        run = Run(project, server, command, is_cold=trial.is_cold, aim=aim)
        result.kills += _kill(trial, moment, run, references, result)
        # a signal may come between its last line and the end of the process
        finished += run.poll() == 0 or "Finished in " in run.shown()
        orphans_may_run = trial.victims == "parent" and trial.signal == "KILL" and not trial.waits
        if not orphans_may_run and not wait_for_orphans(project):
            result.problems.append("processes of the killed run do not end")
            kill_all(project)
    finished += _resume(trial, project, server, result)
    if result.resumed and trial.is_repeated:
        finished += _repeat(trial, project, server, result)
    if not wait_for_orphans(project):
        result.problems.append("processes of a killed run do not end")
        kill_all(project)
    result.problems += store_problems(trial, project, finished)
    if result.resumed:
        expected = references.expected(trial.pipeline, changed=trial.is_changed)
        result.different = differences(expected, project, same_folder=True)
    result.seconds = time.monotonic() - started
    return result


def _aim(trial: Trial, moment: Moment, references: References) -> dict[str, Any] | None:
    if moment.kind == "uniform":
        return None
    target, size = "mlflow/mlflow.db", 0
    if moment.kind in AIMED:
        before = set(output_files(references.start(trial.pipeline)))
        expected = references.expected(trial.pipeline)
        files = [
            path
            for path in output_files(expected)
            if path not in before and not path.startswith("mlflow/") and "/checkpoints/" not in path
        ]
        target = files[int(moment.place * len(files))]
        size = int(moment.share * (expected / "data" / target).stat().st_size)
    return {"kind": moment.kind, "target": target, "size": size, "victims": trial.victims}


def _kill(trial: Trial, moment: Moment, run: Run, references: References, result: Result) -> bool:
    """Kill a run at its moment; return whether it was killed before its end."""
    if moment.kind == "uniform":
        return _kill_at_share(trial, moment, run, references, result)
    if not run.wait_for_moment():
        return False
    armed = int(run.armed.read_text())
    if moment.kind == "store":
        time.sleep(moment.share * STORE_SECONDS)
        killed = run.kill(trial.victims)
    else:
        # the process dies by itself, at once or at the given byte
        deadline = time.monotonic() + 20
        while Path(f"/proc/{armed}/cwd").exists() and time.monotonic() < deadline:
            time.sleep(0.002)
            if trial.victims == "parent" and armed != run.pid:
                break
        killed = True
        if trial.victims == "all":
            kill_all(run.project)
    status = run.wait(60)
    return killed and status != 0


def _kill_at_share(
    trial: Trial, moment: Moment, run: Run, references: References, result: Result
) -> bool:
    seconds = references.seconds[trial.pipeline, trial.runner]
    if not (run.project / STORE).exists():
        seconds += STORE_SECONDS
    if trial.is_cold:
        nodes = NODES_IN_PROCESSES.get(trial.pipeline, 0) if trial.runner == "CudaRunner" else 0
        seconds += references.import_seconds * (1 + nodes)
    run.wait(moment.share * seconds)
    if run.poll() is not None:
        return False
    if trial.signal == "KILL":
        killed = run.kill(trial.victims)
        deadline = time.monotonic() + seconds
        while not killed and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)  # there is no such process now
            killed = run.kill(trial.victims)
        run.wait(60)
        return killed
    with contextlib.suppress(ProcessLookupError):
        if trial.signal == "INT":  # as the terminal sends it
            os.killpg(run.pid, signal.SIGINT)
        else:
            os.kill(run.pid, signal.SIGTERM)
    status = run.end()
    if status is None:
        result.problems.append(f"SIG{trial.signal} did not end the run within 30 s")
    return status != 0


def _resume(trial: Trial, project: Path, server: str, result: Result) -> int:
    """Resume by the documented command; return how many runs ended well."""
    command = arguments(trial.pipeline, trial.runner, changed=trial.is_changed)
    for _ in range(ATTEMPTS):
        run = Run(project, server, command, is_cold=trial.is_cold)
        status = run.end(300)
        if status == 0:
            result.resumed = True
            return 1
        shown = run.shown()
        if not (REFUSED.search(shown) and "Traceback" not in shown and result.kills):
            break
        result.refused += 1
        if not wait_for_orphans(project):
            result.problems.append("a resume was refused, and the first run does not end")
            kill_all(project)
    result.problems.append(f"the resume ended with {status}: {_last_lines(shown)}")
    return 0


def _repeat(trial: Trial, project: Path, server: str, result: Result) -> int:
    """Run the command again, which must make nothing; return how many runs ended well."""

    def times() -> dict[str, int]:
        return {
            path: (project / "data" / path).stat().st_mtime_ns
            for path in output_files(project)
            if not path.startswith("mlflow/")
        }

    before = times()
    run = Run(project, server, arguments(trial.pipeline, trial.runner, changed=trial.is_changed))
    status = run.end(300)
    after = times()
    if status != 0:
        result.problems.append(f"repeated, it ended with {status}: {_last_lines(run.shown())}")
    changed = [path for path in {**before, **after} if before.get(path) != after.get(path)]
    if changed:
        result.problems.append(f"repeated, it made again: {', '.join(changed[:5])}")
    return int(status == 0)


def _last_lines(text: str) -> str:
    return " / ".join(" ".join(line.split()) for line in text.splitlines()[-6:])[-600:]


def run_statuses(project: Path, status: str = "%") -> list[str]:
    """Return the status of every run in the tracking store; an empty list without a store."""
    if not (project / STORE).exists():
        return []
    with contextlib.closing(sqlite3.connect(f"file:{project / STORE}?mode=ro", uri=True)) as store:
        rows = store.execute("select status from runs where status like ?", (status,))
        return [row[0] for row in rows]


def store_problems(trial: Trial, project: Path, finished: int) -> list[str]:
    """Return what is wrong with the tracking store after so many runs that ended well."""
    try:
        statuses = run_statuses(project)
    except sqlite3.Error as error:
        return [f"the tracking store cannot be read: {error}"]
    problems = []
    count = statuses.count("FINISHED")
    if count > finished:
        problems.append(
            f"{count} runs are FINISHED in the tracking store, {finished} have ended well"
        )
    if trial.signal != "KILL" and "RUNNING" in statuses:
        problems.append("a run that was stopped is still RUNNING in the tracking store")
    return problems
