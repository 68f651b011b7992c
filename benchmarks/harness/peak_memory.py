"""The most memory that a process takes while it works: of the GPU by two measures, of the host."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Any, Self

from benchmarks.harness.process_memory import read_memory

SAMPLE_SECONDS = 0.05
_STATUS = Path("/proc/self/status")


class PeakMemory(threading.Thread):
    """Watches this process until ``stop`` is called, or to the end of a ``with`` block.

    NVML counts what PyTorch's counters do not know: the CUDA context and what other libraries
    allocate, but also what PyTorch has freed and keeps. It counts the whole device, of which what
    was in use at the start is subtracted, and where the driver shows it this process alone.
    """

    def __init__(self) -> None:
        """Prepare; sampling begins with ``start``."""
        super().__init__(daemon=True)
        self._ended = threading.Event()
        self._device: Any = None
        self._nvml: Any = None
        self._before = self._device_peak = self._process_peak = 0
        self._private_mb = 0.0
        with contextlib.suppress(ImportError):
            import pynvml

            # no driver, no GPU: host memory alone
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                self._device = pynvml.nvmlDeviceGetHandleByIndex(0)
                self._nvml = pynvml
                self._before = pynvml.nvmlDeviceGetMemoryInfo(self._device).used

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop."""
        self.stop()

    def run(self) -> None:
        """Sample until told to stop."""
        while not self._ended.wait(SAMPLE_SECONDS):
            self._sample()

    def stop(self) -> None:
        """Sample a last time and end."""
        self._ended.set()
        self.join()
        self._sample()

    def _sample(self) -> None:
        self._private_mb = max(self._private_mb, read_memory(_STATUS, "RssAnon"))
        if self._nvml is None:
            return
        # a device may be busy for a moment
        with contextlib.suppress(self._nvml.NVMLError):
            used = self._nvml.nvmlDeviceGetMemoryInfo(self._device).used - self._before
            self._device_peak = max(self._device_peak, used)
            for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._device):
                if process.pid == os.getpid() and process.usedGpuMemory:
                    self._process_peak = max(self._process_peak, process.usedGpuMemory)

    def figures(self) -> dict[str, float | None]:
        """Return the peaks until now, in GB (1e9 bytes); None where there is nothing to measure."""
        import torch

        cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
        return {
            "torch_allocated_gb": _gb(torch.cuda.max_memory_allocated()) if cuda else None,
            "torch_reserved_gb": _gb(torch.cuda.max_memory_reserved()) if cuda else None,
            "nvml_device_gb": _gb(self._device_peak) if self._nvml else None,
            "nvml_process_gb": _gb(self._process_peak) if self._process_peak else None,
            "host_private_gb": round(self._private_mb / 1e3, 3),
            "host_resident_gb": round(read_memory(_STATUS, "VmHWM") / 1e3, 3),
        }


def _gb(size: float) -> float:
    return round(size / 1e9, 3)
