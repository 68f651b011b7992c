"""CUDA devices without hardware, whose state is a folder, so that child processes share it.

A process takes memory with ``allocate``; it is free again once the process calls ``free`` or ends.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from kedro_cuda_runner.devices import Device, NoDevicesError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

GB = 10**9
TOTAL = "total"


class OutOfMemoryError(RuntimeError):
    """What ``torch.OutOfMemoryError`` stands for."""


class FakeDevices:
    """A ``DeviceLayer`` over a folder with a folder a device.

    Args:
        folder: Where the state is.
        count: How many devices there are.
        memory_bytes: What each of them has.
        utilization_percent: Of the first device; each further one reports one more.
        lists_processes: Whether it reports the memory of processes; NVML in a container does not.
    """

    def __init__(
        self,
        folder: Path,
        count: int = 2,
        memory_bytes: float = 24e9,
        utilization_percent: int | None = 50,
        lists_processes: bool = True,
    ) -> None:
        self.folder = folder
        self.count = count
        self.memory_bytes = int(memory_bytes)
        self.percent = utilization_percent
        self.lists_processes = lists_processes
        for device in self._devices():
            (folder / device.uuid).mkdir(parents=True, exist_ok=True)
            (folder / device.uuid / TOTAL).write_text(str(self.memory_bytes))

    def _devices(self) -> list[Device]:
        return [
            Device(index, f"GPU-fake-{index}", "Fake GPU", self.memory_bytes)
            for index in range(self.count)
        ]

    def find(self) -> list[Device]:
        if self.count == 0:
            raise NoDevicesError("there is no CUDA device: the fake has none")
        return self._devices()

    def free_bytes(self, device: Device) -> int:
        return max(0, self.memory_bytes - self.used_bytes(device))

    def used_bytes(self, device: Device) -> int:
        return sum(allocated(self.folder, device.uuid).values())

    def utilization_percent(self, device: Device) -> int | None:
        return None if self.percent is None else self.percent + device.index

    def process_bytes(self, device: Device, pids: Collection[int]) -> int | None:
        by_pid = allocated(self.folder, device.uuid)
        listed = [by_pid[pid] for pid in pids if pid in by_pid]
        return sum(listed) if listed and self.lists_processes else None

    def environment(self, devices: Sequence[Device]) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": ",".join(device.uuid for device in devices)}


def allocated(folder: Path, uuid: str) -> dict[int, int]:
    """Return what each living process has on a device, in bytes."""
    found = {}
    for path in (Path(folder) / uuid).iterdir():
        if path.name.isdigit():
            try:
                size, started = json.loads(path.read_text())
            except FileNotFoundError:  # given back meanwhile
                continue
            if _is_alive(int(path.name), started):
                found[int(path.name)] = size
            else:
                path.unlink(missing_ok=True)
    return found


def allocate(folder: Path | str, uuid: str, gb: float) -> None:
    """Take memory for this process, on top of what it has, until ``free`` or its end.

    Raises:
        OutOfMemoryError: Less is free; two processes at the same moment may both succeed.
    """
    folder = Path(folder)
    by_pid = allocated(folder, uuid)
    size = int(gb * GB)
    free_size = int((folder / uuid / TOTAL).read_text()) - sum(by_pid.values())
    if size > free_size:
        raise OutOfMemoryError(
            f"CUDA out of memory. Tried to allocate {gb} GB, {free_size / GB} GB are free"
        )
    path = folder / uuid / str(os.getpid())
    entry = [by_pid.get(os.getpid(), 0) + size, psutil.Process().create_time()]
    # a reader never sees half of it
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(entry))
    new.replace(path)


def free(folder: Path | str, uuid: str) -> None:
    """Give back what this process has."""
    (Path(folder) / uuid / str(os.getpid())).unlink(missing_ok=True)


def _is_alive(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        # a process id comes back; the time of boot, and with it of creation, moves with the clock
        is_same = abs(process.create_time() - started) < 2
        # a zombie has lost its memory
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
