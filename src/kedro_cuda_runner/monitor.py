"""What running nodes take of their devices and of the machine, sampled by one thread."""

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

# finding a process's children means reading every process of the machine, 10 µs each
TREE_SECONDS = 1.0

# What a process or a device that goes away in the middle of a sample raises: CudaRunnerError is a
# RuntimeError, as is what the list of processes raises that changes meanwhile; ValueError comes
# from multiprocessing for a process that its owner has closed.
SAMPLE_ERRORS = (psutil.Error, OSError, RuntimeError, ValueError)


@dataclass(frozen=True)
class Usage:
    """What a node took while it ran.

    Attributes:
        peak_bytes: The most GPU memory seen on any one of its devices: its processes' own where
            NVML tells, otherwise, on a device that it had for itself, what was used beyond the
            level at its start; None where neither is known.
        mean_utilization_percent: Of its devices, over the samples; None where nobody can tell. On
            a shared device the neighbours count too.
        host_peak_bytes: The most resident memory that its processes and their children had
            together; pages that they share count for each.
    """

    peak_bytes: int | None
    mean_utilization_percent: float | None
    host_peak_bytes: int


@dataclass
class _Watch:
    layer: DeviceLayer
    devices: Sequence[Device]
    pids: Callable[[], Collection[int]]
    # by UUID; none on a device that is shared or does not tell
    levels: dict[str, int]
    # the sampling thread and the last sample take turns
    turn: threading.Lock = field(default_factory=threading.Lock)
    children: list[psutil.Process] = field(default_factory=list)
    children_until: float = 0.0
    process_peak: int | None = None
    device_peak: int | None = None
    host_peak: int = 0
    utilization_sum: int = 0
    utilization_count: int = 0

    def sample(self) -> None:
        """Take in what the processes and devices say now; what they do not say is left out."""
        with self.turn:
            try:
                processes = self._processes()
                if processes:
                    self.host_peak = max(self.host_peak, sum(map(_resident_bytes, processes)))
                    for device in self.devices:
                        self._sample_device(device, {process.pid for process in processes})
            except SAMPLE_ERRORS as error:
                logger.debug("A sample failed: %s", error, exc_info=True)

    def _processes(self) -> list[psutil.Process]:
        roots = [psutil.Process(pid) for pid in self.pids() if psutil.pid_exists(pid)]
        now = time.monotonic()
        if now >= self.children_until:
            self.children = [child for root in roots for child in root.children(recursive=True)]
            self.children_until = now + TREE_SECONDS
        # by process id, since a child may be a root too
        everyone = {process.pid: process for process in [*roots, *self.children]}
        return [process for process in everyone.values() if _is_alive(process)]

    def _sample_device(self, device: Device, pids: Collection[int]) -> None:
        percent = self.layer.utilization_percent(device)
        if percent is not None:
            self.utilization_sum += percent
            self.utilization_count += 1
        own = self.layer.process_bytes(device, pids)
        if own is not None:
            self.process_peak = max(self.process_peak or 0, own)
        if device.uuid in self.levels:
            used = self.layer.used_bytes(device)
            if used is not None:
                beyond = max(0, used - self.levels[device.uuid])
                self.device_peak = max(self.device_peak or 0, beyond)

    def usage(self) -> Usage:
        with self.turn:
            known = self.utilization_count > 0
            return Usage(
                peak_bytes=self.device_peak if self.process_peak is None else self.process_peak,
                mean_utilization_percent=(
                    self.utilization_sum / self.utilization_count if known else None
                ),
                host_peak_bytes=self.host_peak,
            )


class Monitor:
    """Samples while anything is watched; its thread lives as long.

    Args:
        layer: Tells what the devices do.
        interval_seconds: Between two samples.
    """

    def __init__(self, layer: DeviceLayer, interval_seconds: float = 0.2) -> None:
        self._layer = layer
        self._interval_seconds = interval_seconds
        self._watches: dict[str, _Watch] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def watch(
        self,
        key: str,
        devices: Sequence[Device],
        pids: Callable[[], Collection[int]],
    ) -> None:
        """Begin to sample, at the latest before the processes allocate anything on the devices.

        Until ``share`` nobody else of this run uses them.

        Args:
            key: Names this watch, to stop it.
            devices: That the processes use.
            pids: Returns the ids of the processes there are now; their children are found.

        Raises:
            ValueError: The key is watched already.
        """
        watch = _Watch(self._layer, devices, pids, self._levels(devices))
        with self._lock:
            if key in self._watches:
                raise ValueError(f"'{key}' is watched already; stop it first")
            self._watches[key] = watch
            if self._thread is None:
                self._ended = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._ended,), name="gpu-monitor", daemon=True
                )
                self._thread.start()

    def _levels(self, devices: Sequence[Device]) -> dict[str, int]:
        levels = {}
        for device in devices:
            try:
                used = self._layer.used_bytes(device)
            except SAMPLE_ERRORS as error:
                logger.debug("A first sample failed: %s", error, exc_info=True)
                continue
            if used is not None:
                levels[device.uuid] = used
        return levels

    def share(self, key: str) -> None:
        """Forget what the devices use as a whole: from now on it is not this watch's alone.

        Nothing happens where the watch has been stopped meanwhile.
        """
        with self._lock:
            watch = self._watches.get(key)
        if watch is not None:
            with watch.turn:
                watch.levels = {}
                watch.device_peak = None

    def stop(self, key: str) -> Usage:
        """Take a last sample, if the processes are still there, and return all that was seen.

        Raises:
            KeyError: Nothing of that name is watched.
        """
        with self._lock:
            watch = self._watches.pop(key)
            thread = self._thread
            if not self._watches:
                self._ended.set()
                self._thread = None
        watch.children_until = 0.0
        watch.sample()
        # only the last to stop waits, and at most for a sample
        if self._ended.is_set() and thread is not None:
            thread.join()
        return watch.usage()

    def _run(self, ended: threading.Event) -> None:
        while not ended.is_set():
            with self._lock:
                watches = list(self._watches.values())
            for watch in watches:
                watch.sample()
            ended.wait(self._interval_seconds)


def _is_alive(process: psutil.Process) -> bool:
    # a process that nobody has waited for yet is still listed, with nothing left of it
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
