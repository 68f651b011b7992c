"""Peak memory: of the current process and its GPU, or of a command with all its children."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil

from benchmarks.harness.recording import PROJECT


class Sampler(threading.Thread):
    """Calls ``sample`` in a thread from ``__enter__`` to ``__exit__``."""

    def __init__(self, seconds: float) -> None:
        """Sample every ``seconds``."""
        super().__init__(daemon=True)
        self._seconds = seconds
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop."""
        self._ended.set()
        self.join()

    def run(self) -> None:
        """Sample until the block ends, and a last time after it."""
        ended = False
        while not ended:
            ended = self._ended.wait(self._seconds)
            # a process may end while it is read
            with contextlib.suppress(psutil.NoSuchProcess, OSError):
                self.sample()

    def sample(self) -> None:
        """Raise the peaks to the current values."""
        raise NotImplementedError


class PeakMemory(Sampler):
    """Peaks of this process and of the first GPU.

    NVML counts what PyTorch's counters miss: the CUDA context, other libraries' memory, and what
    PyTorch has freed and keeps. It counts the whole device; the use at the start is subtracted.
    """

    def __init__(self) -> None:
        """Read the GPU's memory in use."""
        super().__init__(seconds=0.05)
        self._process = psutil.Process()
        self._nvml: Any = None
        self._private = self._device_peak = self._device_before = 0
        with contextlib.suppress(ImportError):
            import pynvml

            # no driver, no GPU: host memory only
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                self._handle = pynvml.nvmlDeviceGetHandleByIndex(0)
                self._device_before = pynvml.nvmlDeviceGetMemoryInfo(self._handle).used
                self._nvml = pynvml

    def sample(self) -> None:
        """Read the process and the device."""
        memory = self._process.memory_info()
        self._private = max(self._private, memory.rss - memory.shared)
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                used = self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used
                self._device_peak = max(self._device_peak, used - self._device_before)

    def figures(self) -> dict[str, float | None]:
        """Return the peaks so far in GB (1e9 bytes); None where nothing can be measured.

        ``host_private_gb`` leaves out mapped files, ``host_resident_gb`` counts them.
        """
        import torch

        cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
        peaks = {
            "torch_allocated_gb": torch.cuda.max_memory_allocated() if cuda else None,
            "torch_reserved_gb": torch.cuda.max_memory_reserved() if cuda else None,
            "nvml_device_gb": self._device_peak if self._nvml else None,
            "host_private_gb": self._private,
            "host_resident_gb": high_water(self._process.pid),
        }
        return {key: None if size is None else round(size / 1e9, 3) for key, size in peaks.items()}


def high_water(pid: int) -> int:
    """Return the most bytes that a process had resident.

    ``ru_maxrss`` would include the parent's memory from before ``exec``.
    """
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


def limit_memory(gb: float) -> None:
    """Let PyTorch take no more than ``gb`` GB (1e9 bytes) of the first GPU."""
    import torch

    if torch.cuda.is_available():
        share = gb * 1e9 / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(share, 1.0))


class Usage(NamedTuple):
    """What a command took with its children: seconds, and peaks in MB (1e6 bytes)."""

    seconds: float
    resident_mb: float
    private_mb: float


class TreeMemory(Sampler):
    """Peaks of a process and its children, pages that several of them share counted once."""

    def __init__(self, pid: int) -> None:
        """Watch ``pid``."""
        super().__init__(seconds=0.01)
        self._root = psutil.Process(pid)
        self._due = 0.0
        self.resident = self.private = 0

    def sample(self) -> None:
        """Read every process; the kernel walks all pages for it, so 5 % of the time at most."""
        self.resident = max(self.resident, high_water(self._root.pid))
        started = time.perf_counter()
        if started < self._due:
            return
        tree = [self._root, *self._root.children(recursive=True)]
        used = [process.memory_full_info() for process in tree]
        # proportional sizes also divide by other programs that map the same libraries
        self.resident = max(self.resident, sum(m.pss if len(tree) > 1 else m.rss for m in used))
        self.private = max(self.private, sum(m.uss for m in used))
        self._due = started + 20 * (time.perf_counter() - started)


def run_measured(
    command: list[str], environment: dict[str, str] | None = None
) -> tuple[Usage, str]:
    """Run a command to its end; return its usage and what it printed. Exits if it fails."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=PROJECT, env=environment
        )
        with TreeMemory(process.pid) as memory:
            process.wait()
            seconds = time.perf_counter() - started
        output.seek(0)
        printed = output.read()
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{printed[-4000:]}")
    return Usage(seconds, memory.resident / 1e6, memory.private / 1e6), printed
