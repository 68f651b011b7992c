"""Sampling of the GPU and host memory that a running node uses."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from kedro_cuda_runner.devices import Device, DeviceLayer

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 0.2
# psutil reads every process of the machine to find children, about 10 µs each
CHILDREN_SECONDS = 1.0

# raised if a process or device disappears during a sample; CudaRunnerError is a RuntimeError
SAMPLE_ERRORS = (psutil.Error, OSError, RuntimeError)


@dataclass(frozen=True)
class Usage:
    """What a node used while it ran.

    Attributes:
        peak_bytes: Highest GPU memory on one of its devices: of its processes if NVML lists them;
            otherwise, on a device that it does not share, the increase since its start. None if
            unknown.
        mean_utilization_percent: Mean over its devices and all samples, including what other nodes
            do on a shared device; None if unknown.
        host_peak_bytes: Highest total resident memory of its processes and their children; shared
            pages count several times.
        levels: Used bytes at the start of each device that it did not share, if known.
    """

    peak_bytes: int | None
    mean_utilization_percent: float | None
    host_peak_bytes: int
    levels: dict[Device, int] = field(default_factory=dict)


class Watch:
    """Samples the processes of one node and their devices, in a thread, until ``stop``.

    Create it before the processes allocate memory. Until ``share`` is called, the devices count as
    used by this node alone.

    Args:
        layer: Reports the use of the devices.
        devices: Devices of the processes.
        pids: Returns the current process ids; their children are found.
        interval_seconds: Time between two samples.
    """

    def __init__(
        self,
        layer: DeviceLayer,
        devices: Sequence[Device],
        pids: Callable[[], Collection[int]],
        interval_seconds: float = INTERVAL_SECONDS,
    ) -> None:
        self._layer = layer
        self._devices = devices
        self._pids = pids
        self._interval_seconds = interval_seconds
        self._levels = self._used_levels()
        self._lock = threading.Lock()
        self._children: list[psutil.Process] = []
        self._children_until = 0.0
        self._process_peak: int | None = None
        self._device_peak: int | None = None
        self._host_peak = 0
        self._utilization_sum = self._utilization_count = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu-monitor", daemon=True)
        self._thread.start()

    def share(self) -> None:
        """Stop to attribute the devices' total use to this node."""
        with self._lock:
            self._levels = {}
            self._device_peak = None

    def stop(self) -> Usage:
        """Take a last sample, if the processes still exist, and return the usage."""
        self._ended.set()
        self._thread.join()
        self._children_until = 0.0
        self._sample()
        count = self._utilization_count
        return Usage(
            peak_bytes=self._device_peak if self._process_peak is None else self._process_peak,
            mean_utilization_percent=self._utilization_sum / count if count else None,
            host_peak_bytes=self._host_peak,
            levels=self._levels,
        )

    def _used_levels(self) -> dict[Device, int]:
        levels = {}
        for device in self._devices:
            try:
                used = self._layer.used_bytes(device)
            except SAMPLE_ERRORS as error:
                logger.debug("A first sample failed: %s", error, exc_info=True)
                continue
            if used is not None:
                levels[device] = used
        return levels

    def _run(self) -> None:
        self._sample()
        while not self._ended.wait(self._interval_seconds):
            self._sample()

    def _sample(self) -> None:
        """Record the current use; values that cannot be read are skipped."""
        with self._lock:
            try:
                processes = self._processes()
                if processes:
                    self._host_peak = max(self._host_peak, sum(map(_resident_bytes, processes)))
                    for device in self._devices:
                        self._sample_device(device, {process.pid for process in processes})
            except SAMPLE_ERRORS as error:
                logger.debug("A sample failed: %s", error, exc_info=True)

    def _processes(self) -> list[psutil.Process]:
        roots = [psutil.Process(pid) for pid in self._pids() if psutil.pid_exists(pid)]
        now = time.monotonic()
        if now >= self._children_until:
            self._children = [child for root in roots for child in root.children(recursive=True)]
            self._children_until = now + CHILDREN_SECONDS
        # by process id: a child may be a root too
        by_pid = {process.pid: process for process in [*roots, *self._children]}
        return [process for process in by_pid.values() if _is_alive(process)]

    def _sample_device(self, device: Device, pids: Collection[int]) -> None:
        percent = self._layer.utilization_percent(device)
        if percent is not None:
            self._utilization_sum += percent
            self._utilization_count += 1
        own = self._layer.process_bytes(device, pids)
        if own is not None:
            self._process_peak = max(self._process_peak or 0, own)
        if device in self._levels:
            used = self._layer.used_bytes(device)
            if used is not None:
                self._device_peak = max(self._device_peak or 0, used - self._levels[device])


def _is_alive(process: psutil.Process) -> bool:
    # a zombie is listed until its parent waits for it, without memory
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
