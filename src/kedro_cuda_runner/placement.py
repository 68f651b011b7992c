"""Which node gets which devices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kedro_cuda_runner.devices import Device, DeviceLayer
    from kedro_cuda_runner.resources import Resources

GB = 1e9


@dataclass
class _Place:
    """A device and what runs on it.

    Attributes:
        device: It.
        resources: What the nodes on it need, by node, in bytes; None where nobody knows.
        free_before: What was free when the first of them came, in bytes.
    """

    device: Device
    resources: dict[str, int | None] = field(default_factory=dict)
    free_before: int = 0

    def room(self, free_now: int) -> int:
        """Return the memory that nobody holds and no node on the device may still claim.

        Each node counts with its whole need, however little it has allocated so far. What is left
        for them all is what was free before the first came, ``free_before``, or more if others'
        processes have gone since, as ``free_now`` above it shows. Where others have come, or a
        node has taken more than it said, less than that sum may be free now, and only that counts.
        """
        claimed = sum(size or 0 for size in self.resources.values())
        return min(max(self.free_before, free_now) - claimed, free_now)

    def is_closed(self) -> bool:
        """Return whether a node that may take everything is on the device."""
        return None in self.resources.values()


class Placement:
    """Keeps the books of who runs where, for one run; it is not safe for threads.

    - A node without devices takes a place on the CPU, of which there are few.
    - A node whose need of memory nobody knows gets devices without nodes, and nobody joins it.
    - Nodes whose needs are known share a device if all their needs fit beside what other people's
      processes use. A device without nodes comes first, then the one with the most room.
    - Several devices are given all or none.

    Args:
        devices: All of this run's.
        layer: Tells what is free on them.
        max_cpu_processes: Nodes without devices that may run at the same time, at least 1.
    """

    def __init__(
        self, devices: Sequence[Device], layer: DeviceLayer, max_cpu_processes: int = 1
    ) -> None:
        if max_cpu_processes < 1:
            raise ValueError(f"max_cpu_processes = {max_cpu_processes}, must be at least 1")
        self._places = [_Place(device) for device in devices]
        self._layer = layer
        self._max_cpu_processes = max_cpu_processes
        self._on_cpu: set[str] = set()

    def try_place(self, node_name: str, required: Resources) -> tuple[Device, ...] | None:
        """Give a node its devices, in CUDA's order, until ``release``.

        Returns:
            The devices, none for a node that needs none; None, which is not the empty tuple, where
            the node must wait.

        Raises:
            ValueError: The node has its place already.
            CudaRunnerError: A device does not answer.
        """
        if node_name in self._on_cpu or any(node_name in place.resources for place in self._places):
            raise ValueError(f"node '{node_name}' has its place already; release it first")
        if required.devices == 0:
            if len(self._on_cpu) >= self._max_cpu_processes:
                return None
            self._on_cpu.add(node_name)
            return ()
        free = {place.device.uuid: self._layer.free_bytes(place.device) for place in self._places}
        candidates = [
            place for place in self._places if _fits(place, required, free[place.device.uuid])
        ]
        if len(candidates) < required.devices:
            return None
        # to a GB: which of two idle devices has some MB more free is chance
        candidates.sort(
            key=lambda place: (bool(place.resources), -(place.room(free[place.device.uuid]) // GB))
        )
        chosen = sorted(candidates[: required.devices], key=lambda place: place.device.index)
        for place in chosen:
            if not place.resources:
                place.free_before = free[place.device.uuid]
            place.resources[node_name] = required.memory_bytes
        return tuple(place.device for place in chosen)

    def release(self, node_name: str) -> None:
        """Take back what a node was given, once its processes have ended.

        Raises:
            KeyError: It has no place.
        """
        places = [place for place in self._places if node_name in place.resources]
        if not places:
            self._on_cpu.remove(node_name)
        for place in places:
            del place.resources[node_name]

    def could_ever_fit(self, required: Resources) -> str | None:
        """Return why this need cannot be met here even when no other node runs; None if it can.

        What other people's processes hold now counts as theirs for good.
        """
        count = len(self._places)
        if required.devices > count:
            return f"it needs {required.devices} CUDA devices, there are {count}"
        least = required.least_bytes
        if required.devices == 0 or least is None:
            return None
        free = [(place.device, self._free_without_nodes(place)) for place in self._places]
        if sum(size >= least for _, size in free) >= required.devices:
            return None
        listed = ", ".join(
            f"cuda:{device.index} ({device.name}) {size / GB:.1f} of "
            f"{device.memory_bytes / GB:.1f} GB"
            for device, size in free
        )
        where = (
            "on one device" if required.devices == 1 else f"on each of {required.devices} devices"
        )
        return f"it needs {least / GB:.1f} GB {where}; free are: {listed}"

    def _free_without_nodes(self, place: _Place) -> int:
        free_now = self._layer.free_bytes(place.device)
        return max(place.free_before, free_now) if place.resources else free_now


def _fits(place: _Place, required: Resources, free_now: int) -> bool:
    if not place.resources:
        return required.least_bytes is None or required.least_bytes <= free_now
    if required.memory_bytes is None or place.is_closed():
        return False
    return required.memory_bytes <= place.room(free_now)
