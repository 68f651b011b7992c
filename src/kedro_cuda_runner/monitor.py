"""Sampling of the GPU and host memory that a running node uses."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence

import psutil

from kedro_cuda_runner.devices import Device, DeviceLayer
from kedro_cuda_runner.report import NodeRecord

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 0.2
# psutil reads every process of the machine to find children, about 10 µs each
CHILDREN_SECONDS = 1.0

# raised if a process or device disappears during a sample; CudaRunnerError is a RuntimeError
SAMPLE_ERRORS = (psutil.Error, OSError, RuntimeError)


class Watch:
    """Samples the process of one node, its children and its devices, in a thread, until ``stop``.

    Create it before the process allocates memory. Until ``share`` is called, the devices count as
    used by this node alone: where NVML does not list processes, the increase of their used memory
    is the node's.

    Args:
        layer: Reports the use of the devices.
        devices: Devices of the process.
        pid: Returns the process id; None before the start.
        record: Gets what was measured.

    Attributes:
        levels: Used bytes at the start of each device that the node did not share, if known.
    """

    def __init__(
        self,
        layer: DeviceLayer,
        devices: Sequence[Device],
        pid: Callable[[], int | None],
        record: NodeRecord,
    ) -> None:
        self._layer = layer
        self._devices = devices
        self._pid = pid
        self._record = record
        used = {device: self.used_bytes(device) for device in devices}
        self.levels = {device: level for device, level in used.items() if level is not None}
        self._lock = threading.Lock()
        self._children: list[psutil.Process] = []
        self._children_until = 0.0
        self._process_peak: int | None = None
        self._device_peak: int | None = None
        self._utilization_sum = self._utilization_count = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu-monitor", daemon=True)
        self._thread.start()

    def share(self) -> None:
        """Stop to attribute the devices' total use to this node."""
        with self._lock:
            self.levels = {}
            self._device_peak = None

    def stop(self) -> None:
        """Take a last sample, if the process still exists, and complete the record."""
        self._ended.set()
        self._thread.join()
        self._children_until = 0.0
        self._sample()
        own, count = self._process_peak, self._utilization_count
        self._record.peak_bytes = self._device_peak if own is None else own
        self._record.mean_utilization_percent = self._utilization_sum / count if count else None

    def used_bytes(self, device: Device) -> int | None:
        """Return the used memory; None if it is unknown, or if the device does not respond."""
        try:
            return self._layer.used_bytes(device)
        except SAMPLE_ERRORS as error:  # the node runs, or is finished and saved, nevertheless
            logger.warning("%s", error)
            return None

    def _run(self) -> None:
        self._sample()
        while not self._ended.wait(INTERVAL_SECONDS):
            self._sample()

    def _sample(self) -> None:
        """Record the current use; values that cannot be read are skipped."""
        with self._lock:
            try:
                resident = {one.pid: _resident_bytes(one) for one in self._processes()}
                alive = [pid for pid, size in resident.items() if size]
                if alive:
                    total = sum(resident.values())
                    self._record.host_peak_bytes = max(self._record.host_peak_bytes, total)
                    for device in self._devices:
                        self._sample_device(device, alive)
            except SAMPLE_ERRORS as error:
                logger.debug("A sample failed: %s", error, exc_info=True)

    def _processes(self) -> list[psutil.Process]:
        pid, now = self._pid(), time.monotonic()
        if pid is None or not psutil.pid_exists(pid):
            return []
        process = psutil.Process(pid)
        if now >= self._children_until:
            self._children = process.children(recursive=True)
            self._children_until = now + CHILDREN_SECONDS
        return [process, *self._children]

    def _sample_device(self, device: Device, pids: Collection[int]) -> None:
        percent = self._layer.utilization_percent(device)
        if percent is not None:
            self._utilization_sum += percent
            self._utilization_count += 1
        own = self._layer.process_bytes(device, pids)
        if own is not None:
            self._process_peak = max(self._process_peak or 0, own)
        if device in self.levels:
            used = self._layer.used_bytes(device)
            if used is not None:
                self._device_peak = max(self._device_peak or 0, used - self.levels[device])


def _resident_bytes(process: psutil.Process) -> int:
    """Return the resident memory: 0 once a process has ended, waited for or not."""
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
