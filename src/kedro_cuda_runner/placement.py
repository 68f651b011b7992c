"""The assignment of nodes to devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kedro_cuda_runner.devices import Device, DeviceLayer
from kedro_cuda_runner.resources import Resources

GB = 1e9


@dataclass
class _Slot:
    """A device and its nodes.

    Attributes:
        device: The device.
        claims: Declared memory of each node on it in bytes, None if unknown.
        free_before: Free bytes when the first of these nodes was placed.
    """

    device: Device
    claims: dict[str, int | None] = field(default_factory=dict)
    free_before: int = 0

    def room(self, free_now: int) -> int:
        """Return the memory that is free and that no node on the device may still claim.

        Each node counts with its declared memory, even if it has not allocated it yet. The claims
        are subtracted from ``free_before``, or from ``free_now`` if that is larger because another
        program has ended. If another program has started or a node uses more than it declared,
        ``free_now`` is the limit.
        """
        claimed = sum(size or 0 for size in self.claims.values())
        return min(max(self.free_before, free_now) - claimed, free_now)

    def fits(self, required: Resources, free_now: int) -> bool:
        """Return whether one more node fits."""
        if not self.claims:
            return required.least_bytes is None or required.least_bytes <= free_now
        if required.memory_bytes is None or None in self.claims.values():
            return False
        return required.memory_bytes <= self.room(free_now)


class Placement:
    """Assigns devices to the nodes of one run; not thread-safe.

    - Nodes without devices run one at a time on the CPU.
    - A node of unknown memory gets empty devices and does not share them.
    - Nodes of known memory share a device if their declared memory fits into what other programs
      leave free. Empty devices are preferred, then the device with the most room.
    - A node that uses several devices gets all of them at once.

    Args:
        devices: All devices of this run.
        layer: Reports their free memory.
    """

    def __init__(self, devices: Sequence[Device], layer: DeviceLayer) -> None:
        self._slots = [_Slot(device) for device in devices]
        self._layer = layer
        self._on_cpu: str | None = None

    def try_place(self, node_name: str, required: Resources) -> tuple[Device, ...] | None:
        """Assign devices to a node until ``release``.

        Returns:
            The devices in CUDA's order, an empty tuple for a node without devices, or None if the
            node must wait.

        Raises:
            ValueError: The node is placed already.
            CudaRunnerError: A device does not respond.
        """
        if node_name == self._on_cpu or any(node_name in slot.claims for slot in self._slots):
            raise ValueError(f"node '{node_name}' is placed already; release it first")
        if required.devices == 0:
            if self._on_cpu is not None:
                return None
            self._on_cpu = node_name
            return ()
        free = {slot.device.uuid: self._layer.free_bytes(slot.device) for slot in self._slots}
        candidates = [slot for slot in self._slots if slot.fits(required, free[slot.device.uuid])]
        if len(candidates) < required.devices:
            return None
        # to a GB: a difference of some MB between two idle devices is chance
        candidates.sort(
            key=lambda slot: (bool(slot.claims), -(slot.room(free[slot.device.uuid]) // GB))
        )
        chosen = sorted(candidates[: required.devices], key=lambda slot: slot.device.index)
        for slot in chosen:
            if not slot.claims:
                slot.free_before = free[slot.device.uuid]
            slot.claims[node_name] = required.memory_bytes
        return tuple(slot.device for slot in chosen)

    def release(self, node_name: str) -> None:
        """Free the devices of a node whose processes have ended.

        Raises:
            KeyError: The node is not placed.
        """
        slots = [slot for slot in self._slots if node_name in slot.claims]
        if node_name == self._on_cpu:
            self._on_cpu = None
        elif not slots:
            raise KeyError(node_name)
        for slot in slots:
            del slot.claims[node_name]

    def why_never_fits(self, required: Resources) -> str | None:
        """Return why a node would not fit even if it ran alone; None if it would.

        The memory that other programs use now counts as used.
        """
        count, least = len(self._slots), required.least_bytes
        if required.devices > count:
            return f"it needs {required.devices} CUDA devices, there are {count}"
        if required.devices == 0 or least is None:
            return None
        free = [(slot.device, self._free_without_nodes(slot)) for slot in self._slots]
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

    def _free_without_nodes(self, slot: _Slot) -> int:
        free_now = self._layer.free_bytes(slot.device)
        return max(slot.free_before, free_now) if slot.claims else free_now
