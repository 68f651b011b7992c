"""The undisturbed runs: what each pipeline starts from, and what it must have made in the end."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks.faults.processes import Run, WarmServer, wait_for_orphans
from benchmarks.faults.project import copy_project, make_project
from benchmarks.faults.trials import CHANGES, PIPELINES
from benchmarks.harness.outputs import differences


def arguments(pipeline: str, runner: str, *, changed: bool = False) -> list[str]:
    """Return the documented command that starts a run and that resumes it."""
    names = {"SequentialRunner": "SequentialRunner", "CudaRunner": "kedro_cuda_runner.CudaRunner"}
    found = ["run", "--env=test", "--only-missing-outputs", f"--runner={names[runner]}"]
    if pipeline != "__default__":
        found.append(f"--pipeline={pipeline}")
    if changed:
        found.append(f"--params={CHANGES[pipeline]}")
    return found


class References:
    """States of a project, all of which were made at the same path.

    Runs record the paths of models, so that trials run at this path, too.

    Attributes:
        base: A project without outputs.
        work: The folder of the current trial; ``project`` is its project.
        seconds: How long the undisturbed run took by pipeline and runner, in warm processes.
        import_seconds: What the start of a process adds.
    """

    def __init__(self, folder: Path, cells: Iterable[tuple[str, str]]) -> None:
        """Make the states that trials of these pipelines and runners need."""
        self.folder = folder
        self.work = folder / "work"
        self.project = self.work / "project"
        self.base = make_project(folder / "base")
        self.seconds: dict[tuple[str, str], float] = {}
        cells = set(cells)
        pipelines = {pipeline for pipeline, _ in cells}
        started = time.monotonic()
        # sets have another order than in the trials
        with WarmServer(folder, self.base, hash_seed=1) as server:
            self.import_seconds = time.monotonic() - started
            self._run_all(server, pipelines)
            for pipeline, runner in sorted(cells):
                self._measure(server, pipeline, runner)

    def start(self, pipeline: str) -> Path:
        """Return the project before a pipeline runs."""
        index = PIPELINES.index(pipeline)
        return self.base if index < 2 else self.expected(PIPELINES[index - 1])

    def expected(self, pipeline: str, *, changed: bool = False) -> Path:
        """Return the project after the undisturbed run."""
        return self.folder / (f"{pipeline}-changed" if changed else pipeline)

    def begin(self, pipeline: str, *, has_store: bool) -> Path:
        """Return the trial's project as it is before the run."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        copy_project(self.start(pipeline), self.project)
        store = self.project / "data/mlflow"
        if has_store and not store.exists():
            shutil.copytree(self.expected("__default__") / "data/mlflow", store)
        if not has_store:
            shutil.rmtree(store, ignore_errors=True)
        return self.project

    def _run_all(self, server: str, pipelines: set[str]) -> None:
        # each alone begins with what the one before has left
        last = max(PIPELINES.index(pipeline) for pipeline in pipelines)
        for pipeline in PIPELINES[: last + 1]:
            self._make(server, pipeline)
            if pipeline in pipelines & CHANGES.keys():
                self._make(server, pipeline, changed=True)

    def _make(self, server: str, pipeline: str, *, changed: bool = False) -> None:
        # making the store takes longer than most pipelines
        self.begin(pipeline, has_store=self.expected("__default__").exists())
        self._run(server, pipeline, "SequentialRunner", changed=changed)
        copy_project(self.project, self.expected(pipeline, changed=changed))

    def _measure(self, server: str, pipeline: str, runner: str) -> None:
        self.begin(pipeline, has_store=True)
        self._run(server, pipeline, runner)
        found = differences(self.expected(pipeline), self.project, same_folder=True)
        for path, text in found.items():
            print(f"undisturbed {pipeline} under {runner}: {path}: {text}")

    def _run(self, server: str, pipeline: str, runner: str, *, changed: bool = False) -> None:
        run = Run(self.project, server, arguments(pipeline, runner, changed=changed))
        if run.wait() != 0:
            raise RuntimeError(f"undisturbed {pipeline} failed:\n{run.log.read_text()[-4000:]}")
        if not changed:
            self.seconds[pipeline, runner] = time.monotonic() - run.started
        wait_for_orphans(self.project)
