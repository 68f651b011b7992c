"""Runs of a trial's project as processes: started or forked, killed alone or all at once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.faults import aimed, fake_gpus
from benchmarks.faults.project import PROJECT
from benchmarks.faults.warm_server import SOCKET, Process

POLL_SECONDS = 0.003
RUN_SECONDS = 300.0
HERE = Path(__file__).resolve().parent


def environment(folder: Path, server: str) -> dict[str, str]:
    """Return the variables of all processes of a trial whose files are in ``folder``."""
    paths = [HERE / "startup", PROJECT, PROJECT / "src", PROJECT / "tests"]
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("KEDRO_", "MLFLOW_", "HF_", "JA_FAULTS_"))
    }
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        "COLUMNS": "200",
        fake_gpus.VARIABLE: str(folder / "devices"),
        SOCKET: server,
    }


class WarmServer:
    """The process from which runs are forked."""

    def __init__(self, folder: Path, project: Path, *, hash_seed: int) -> None:
        self.address = str(folder / f"server{hash_seed}")
        self._log = (folder / f"server{hash_seed}.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "warm_server.py"), self.address],
            # Kedro reads conf/logging.yml of the working directory when it is imported
            cwd=project,
            env={**environment(folder, self.address), "PYTHONHASHSEED": str(hash_seed)},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    def __enter__(self) -> str:
        """Wait until it serves; return its address."""
        while not Path(self.address).exists():
            if self._process.poll() is not None:
                raise RuntimeError(Path(self._log.name).read_text())
            time.sleep(0.1)
        return self.address

    def __exit__(self, *exception: object) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._log.close()


class Run:
    """A ``kedro`` command in a trial's project; its output is in ``log``."""

    def __init__(
        self,
        project: Path,
        server: str,
        arguments: list[str],
        *,
        is_cold: bool = False,
        aim: dict[str, Any] | None = None,
    ) -> None:
        folder = project.parent
        self.project = project
        self.armed = folder / "armed"
        self.armed.unlink(missing_ok=True)
        self.log = folder / f"run{len(list(folder.glob('run*.log')))}.log"
        variables = environment(folder, server)
        if aim is not None:
            aim = {**aim, "data": str(project / "data"), "armed": str(self.armed)}
            variables[aimed.VARIABLE] = json.dumps(aim)
        self.started = time.monotonic()
        with self.log.open("wb") as output:
            self._process: Any
            if is_cold:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "kedro", *arguments],
                    cwd=project,
                    env=variables,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            else:
                descriptors = [output.fileno()] * 2
                self._process = Process(
                    server, ["kedro", *arguments], descriptors, str(project), variables
                )
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """Return the exit status; None while it runs."""
        status: int | None = self._process.poll()
        return status

    def wait(self, seconds: float = RUN_SECONDS) -> int | None:
        """Return the exit status; None if it has not ended in time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self.poll()

    def shown(self) -> str:
        """Return what was printed so far."""
        return self.log.read_text("utf-8", "replace")

    def others(self) -> list[int]:
        """Return the other processes of the project: of nodes, and what they have started."""
        return [pid for pid in processes_in(self.project) if pid != self.pid]

    def wait_for_moment(self, seconds: float = RUN_SECONDS) -> bool:
        """Return whether the aimed moment came before the end of the run."""
        deadline = time.monotonic() + seconds
        while not (self.armed.exists() and self.armed.read_text()):
            if self.poll() is not None or time.monotonic() > deadline:
                return self.armed.exists()
            time.sleep(POLL_SECONDS)
        return True

    def kill(self, victims: str) -> bool:
        """Kill processes at this moment; return whether there was one to kill."""
        if self.poll() is not None and victims != "all":
            return False
        if victims == "child":
            return any(_kill(pid) for pid in self.others()[:1])
        killed = _kill(self.pid)
        if victims == "all":
            kill_all(self.project)
        return killed

    def end(self, seconds: float = 30.0) -> int | None:
        """Return the exit status, after at most ``seconds``; None if it had to be killed."""
        status = self.wait(seconds)
        if status is None:
            kill_all(self.project)
            self.wait(seconds)
        return status


def _kill(pid: int, number: signal.Signals = signal.SIGKILL) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def processes_in(project: Path) -> Iterator[int]:
    """Yield the processes whose working directory is the project."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            # a zombie has no directory
            with contextlib.suppress(OSError):
                if Path(entry.path, "cwd").readlink() == project:
                    yield int(entry.name)


def kill_all(project: Path) -> None:
    """Kill every process of the project, also those that one of them starts meanwhile."""
    while found := list(processes_in(project)):
        for pid in found:
            _kill(pid)
        time.sleep(POLL_SECONDS)


def wait_for_orphans(project: Path, seconds: float = 60.0) -> bool:
    """Return whether all processes of the project have ended in time."""
    deadline = time.monotonic() + seconds
    while list(processes_in(project)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
