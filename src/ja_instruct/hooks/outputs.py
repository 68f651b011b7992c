"""Hooks that keep the outputs whole: remains of killed runs, and two runs at once."""

from __future__ import annotations

import atexit
import json
import logging
import os
import shlex
import socket
import sys
import threading
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl

from ja_instruct.errors import InputError
from ja_instruct.preflight.folders import filepath_of
from ja_instruct.preflight.run import nodes_to_run
from ja_instruct.tables.locks import LockFile, is_locked, locked

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline

logger = logging.getLogger(__name__)

FOLDER = "data"
MUTEX = ".runs.lock"
LISTED = 3


@dataclass(frozen=True)
class RunRecord:
    """What other runs read about a run.

    Attributes:
        pid: Process ID.
        host: Name of the computer, since several may share a file system.
        started: Local time with offset, ISO 8601.
        environment: Kedro's environment.
        command: The command line.
        outputs: Names of the datasets that the run writes, by path.
        inputs: Names of the datasets that it reads and does not make, by path.
    """

    pid: int
    host: str
    started: str
    environment: str
    command: str
    outputs: Mapping[str, str]
    inputs: Mapping[str, str]

    def __str__(self) -> str:
        """Return the words that identify the run."""
        place = "" if self.host == socket.gethostname() else f" on {self.host}"
        return (
            f"process {self.pid}{place}, started {self.started}, environment "
            f"'{self.environment}', command '{self.command}'"
        )


class RunningRun:
    """A run that others see: a locked file in a common folder says what the run writes.

    The lock and not the process ID says whether a run is still running: the kernel releases it when
    the process ends, and an ID may belong to another program after a while or a reboot.
    """

    def __init__(self, folder: Path, environment: str) -> None:
        """Register a run that writes nothing yet.

        Raises:
            OSError: The folder cannot be written to, or its file system has no locks.
        """
        self._folder = folder
        self._environment = environment
        self._started = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        self.thread = threading.get_ident()
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / MUTEX):
            self._lock = LockFile(folder / f".run-{os.getpid()}-{uuid.uuid4().hex[:8]}.json")
            self._write({}, {})

    def claim(self, outputs: Mapping[str, str], inputs: Mapping[str, str]) -> None:
        """Reserve outputs for this run, and keep other runs from writing its inputs.

        Args:
            outputs: Names of the datasets that it writes, by path.
            inputs: Names of the datasets that it reads and does not make, by path.

        Raises:
            InputError: Another run is writing one of them, or reading one of the outputs.
        """
        with locked(self._folder / MUTEX):
            for other in self._others():
                _refuse(other, other.outputs, outputs, "writing outputs of this run")
                _refuse(other, other.outputs, inputs, "writing inputs of this run")
                _refuse(other, other.inputs, outputs, "reading outputs of this run")
            self._write(outputs, inputs)

    def end(self) -> None:
        """Release the outputs."""
        self._lock.release()

    def _write(self, outputs: Mapping[str, str], inputs: Mapping[str, str]) -> None:
        record = RunRecord(
            os.getpid(),
            socket.gethostname(),
            self._started,
            self._environment,
            shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            outputs,
            inputs,
        )
        self._lock.path.write_text(json.dumps(asdict(record), ensure_ascii=False), "utf-8")

    def _others(self) -> list[RunRecord]:
        """Return the other running runs; remove the files of runs that were killed."""
        running = []
        for path in sorted(self._folder.glob(".run-*.json")):
            if path == self._lock.path:
                continue
            record = None
            with suppress(ValueError, TypeError):  # killed while it wrote the file
                record = RunRecord(**json.loads(path.read_text("utf-8")))
            if not is_locked(path):
                path.unlink()
                logger.info(
                    "A run was killed before it ended; its outputs are free again: %s",
                    record or path.name,
                )
            elif record is not None:
                running.append(record)
        return running


def _refuse(other: RunRecord, used: Mapping[str, str], paths: Mapping[str, str], what: str) -> None:
    names = sorted(name for path, name in paths.items() if path in used)
    if names:
        listed = ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")
        raise InputError(
            f"another run is {what} ({listed}): {other}. Wait until it has ended, or stop it, and "
            f"run this command again"
        )


def _by_path(names: set[str], catalog: DataCatalog) -> dict[str, str]:
    paths = {name: filepath_of(catalog.get(name)) for name in names}
    return {os.path.realpath(path): name for name, path in paths.items() if path is not None}


class OutputsHook:
    """Removes what killed runs left unfinished, and reserves the outputs that a run will write.

    Its part that looks at stale outputs, ``StaleOutputsHook``, is called after kedro_freshness has
    found them.
    """

    def __init__(self) -> None:
        """Start without a run."""
        self._runs: dict[str, RunningRun] = {}
        atexit.register(self._end_all)  # of a run that was interrupted

    @hook_impl(wrapper=True, tryfirst=True)
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> Generator[None, Any, Any]:
        """Reserve the outputs before any other hook; release them if one refuses the run.

        Raises:
            InputError: Another run is writing them.
        """
        self._end_interrupted()
        self._begin(run_params)
        try:
            self.claim(run_params, pipeline, catalog)
            discard_unfinished(catalog)
            return (yield)
        except BaseException:
            self._end(run_params)
            raise

    @hook_impl(wrapper=True)
    def after_pipeline_run(self, run_params: dict[str, Any]) -> Generator[None, Any, Any]:
        """Release the outputs after the other hooks, which may write."""
        try:
            return (yield)
        finally:
            self._end(run_params)

    @hook_impl(wrapper=True)
    def on_pipeline_error(self, run_params: dict[str, Any]) -> Generator[None, Any, Any]:
        """Release the outputs."""
        try:
            return (yield)
        finally:
            self._end(run_params)

    def claim(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Reserve the outputs that are missing, or all of them."""
        run = self._runs.get(run_params["run_id"])
        if run is None:
            return
        nodes = nodes_to_run(
            pipeline, catalog, only_missing_outputs=run_params["only_missing_outputs"]
        )
        outputs = {name for node in nodes for name in node.outputs}
        inputs = {name for node in nodes for name in node.inputs} - outputs
        run.claim(_by_path(outputs, catalog), _by_path(inputs, catalog))

    def _begin(self, run_params: dict[str, Any]) -> None:
        folder = Path(run_params["project_path"]) / FOLDER
        try:
            run = RunningRun(folder, run_params["env"] or "local")
        except OSError as error:
            logger.warning(
                "%s cannot be used (%s): another run on the same outputs will not be noticed",
                folder,
                error.strerror or error,
            )
            return
        self._runs[run_params["run_id"]] = run

    def _end(self, run_params: dict[str, Any]) -> None:
        run = self._runs.pop(run_params["run_id"], None)
        if run is not None:
            run.end()

    def _end_interrupted(self) -> None:
        """End earlier runs of this thread; Kedro calls no hook when a run is interrupted."""
        for run_id, run in list(self._runs.items()):
            if run.thread == threading.get_ident():
                self._runs.pop(run_id).end()

    def _end_all(self) -> None:
        for run in self._runs.values():
            run.end()


class StaleOutputsHook:
    """Reserves existing outputs that will be made again, once kedro_freshness has found them."""

    def __init__(self, outputs: OutputsHook) -> None:
        """Share the runs of the other hook."""
        self._outputs = outputs

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Reserve the outputs again.

        Raises:
            InputError: Another run is writing them.
        """
        self._outputs.claim(run_params, pipeline, catalog)


def discard_unfinished(catalog: DataCatalog) -> None:
    """Remove what killed runs left unfinished of every dataset in the catalog.

    What another process is saving is left alone.
    """
    for name in catalog:
        discard = getattr(catalog.get(name), "discard_unfinished", None)
        try:
            if discard is not None:
                discard()
        except OSError as error:
            logger.warning("'%s': what a killed run left cannot be removed: %s", name, error)
