"""Seconds and memory of a process with its children, from outside."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.harness.recording import PROJECT


class Usage(NamedTuple):
    """What a process and its children took: seconds, and MB at their peaks."""

    seconds: float
    resident_mb: float
    private_mb: float
    processes: int


def run_measured(
    command: list[str], environment: dict[str, str] | None = None
) -> tuple[Usage, str]:
    """Run a command to its end; return its usage and what it printed. Exits when it fails."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=PROJECT, env=environment
        )
        sampler = MemorySampler(process.pid)
        sampler.start()
        process.wait()
        seconds = time.perf_counter() - started
        sampler.join()
        output.seek(0)
        printed = output.read()
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{printed[-4000:]}")
    return Usage(seconds, *sampler.peaks()), printed


def describe_memory(usages: list[Usage], raw_mb: float) -> dict[str, float]:
    """Return the highest peaks of some runs, and the goal for resident memory, in MB."""
    return {
        "resident_mb": round(max(usage.resident_mb for usage in usages), 1),
        "private_mb": round(max(usage.private_mb for usage in usages), 1),
        "goal_mb": round(1.5 * raw_mb + 500, 1),
        "processes": max(usage.processes for usage in usages),
    }


class MemorySampler(threading.Thread):
    """Watches the memory of a process and its children until it ends."""

    def __init__(self, pid: int) -> None:
        """Watch ``pid``."""
        super().__init__(daemon=True)
        self._root = psutil.Process(pid)
        self._resident = self._private = self._high_water = 0.0
        self._processes = 1

    def run(self) -> None:
        """Sample; the kernel walks all pages for it, so for a twentieth of the time at most."""
        status = Path(f"/proc/{self._root.pid}/status")
        due = 0.0
        while True:
            # a process may end between being listed and being read
            with contextlib.suppress(psutil.NoSuchProcess, OSError):
                self._high_water = read_memory(status, "VmHWM") or self._high_water
                if time.perf_counter() >= due:
                    started = time.perf_counter()
                    self._sample()
                    due = started + 20 * (time.perf_counter() - started)
            if self._finished():
                return
            time.sleep(0.01)

    def _finished(self) -> bool:
        try:
            return bool(self._root.status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    def _sample(self) -> None:
        tree = [self._root, *self._root.children(recursive=True)]
        pages = [Path(f"/proc/{process.pid}/smaps_rollup") for process in tree]
        # shares of pages count other programs that map the same libraries, so only where needed
        resident, private = ("Rss", "Anonymous") if len(tree) == 1 else ("Pss", "Pss_Anon")
        self._resident = max(self._resident, sum(read_memory(page, resident) for page in pages))
        self._private = max(self._private, sum(read_memory(page, private) for page in pages))
        self._processes = max(self._processes, len(tree))

    def peaks(self) -> tuple[float, float, int]:
        """Return the peaks: resident and private MB, number of processes."""
        return max(self._resident, self._high_water), self._private, self._processes


def read_memory(path: Path, *names: str) -> float:
    """Return the sum of fields of a file of /proc, in MB."""
    fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return sum(int(fields[name].split()[0]) for name in names if name in fields) * 1024 / 1e6
