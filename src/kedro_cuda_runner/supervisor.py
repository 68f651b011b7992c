"""A node on its devices: started, watched, measured, and its memory seen to come back."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from kedro_cuda_runner.errors import CudaRunnerError
from kedro_cuda_runner.failures import explain
from kedro_cuda_runner.formatting import duration, gigabytes
from kedro_cuda_runner.node_process import NodeProcess
from kedro_cuda_runner.report import NodeRecord
from kedro_cuda_runner.tracking import continued

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kedro.pipeline.node import Node

    from kedro_cuda_runner.devices import Device, DeviceLayer
    from kedro_cuda_runner.errors import GpuNodeError
    from kedro_cuda_runner.monitor import Monitor, Usage
    from kedro_cuda_runner.node_process import Ending, RunContext
    from kedro_cuda_runner.resources import Resources

logger = logging.getLogger(__name__)

# the driver gives memory back a moment after a process has ended
RELEASE_SECONDS = 10.0
RELEASED_WITHIN_BYTES = 64 * 2**20


class Supervisor:
    """Sees one node through.

    Attributes:
        devices: The node's.
        record: What is known of it, for the report.
    """

    def __init__(
        self,
        node: Node,
        required: Resources,
        devices: Sequence[Device],
        layer: DeviceLayer,
        monitor: Monitor,
        shared: RunContext,
    ) -> None:
        self.devices = devices
        self.record = NodeRecord(
            node.name,
            place=", ".join(f"cuda:{one.index} ({one.name})" for one in devices)
            or "CPU, own process",
            devices=tuple(one.index for one in devices),
            estimated_bytes=required.memory_bytes if devices else None,
            available_bytes=min((layer.free_bytes(one) for one in devices), default=0),
            device_bytes=min((one.memory_bytes for one in devices), default=0),
            parts=dict(required.parts),
        )
        self._node = node
        self._resources = required
        self._layer = layer
        self._monitor = monitor
        self._shared = shared
        self._is_shared = False
        self._is_stopped = False
        self._process = NodeProcess(node, devices, layer.environment(devices), shared)
        self._used_before = {one: layer.used_bytes(one) for one in devices}
        monitor.watch(node.name, devices, self._process.process_ids)

    def share(self, devices: Sequence[Device]) -> None:
        """Take note of a neighbour: what a device uses is then not this node's alone."""
        if set(devices) & set(self.devices):
            self._is_shared = True
            self._monitor.share(self._node.name)

    def run(self) -> GpuNodeError | None:
        """Run the node; blocks.

        Returns:
            The error, if the node was not finished.
        """
        self._announce()
        started = time.perf_counter()
        with continued(self._shared.tracking):
            try:
                ending = self._process.run()
            finally:
                usage = self._monitor.stop(self._node.name)
            self.record.seconds = time.perf_counter() - started
            self._note(usage, ending)
            error = None if ending.done else self._explain(ending)
        self._wait_for_memory()
        if error is None:
            self._praise()
        return error

    def stop(self, *, kill: bool) -> None:
        """Ask the node's process to end, or end it."""
        self._is_stopped = True
        self._process.stop(kill=kill)

    def _announce(self) -> None:
        record = self.record
        if record.devices:
            needed = (
                f", about {gigabytes(record.estimated_bytes)} needed"
                if record.estimated_bytes is not None
                else ""
            )
            free = gigabytes(record.available_bytes)
            logger.info("%s on %s: %s free%s", record.node, record.place, free, needed)
        else:
            logger.info("%s in a process of its own, on the CPU", record.node)

    def _praise(self) -> None:
        record = self.record
        peak = "" if record.peak_bytes is None else f", peak {gigabytes(record.peak_bytes)}"
        logger.info("%s ended after %s%s", record.node, duration(record.seconds), peak)

    def _note(self, usage: Usage, ending: Ending) -> None:
        record = self.record
        peaks = [one for one in (usage.peak_bytes, ending.torch_peak_bytes) if one is not None]
        record.peak_bytes = max(peaks) if peaks and record.devices else None
        record.mean_utilization_percent = usage.mean_utilization_percent
        record.host_peak_bytes = usage.host_peak_bytes
        record.outcome = "done" if ending.done else "failed"
        if ending.done and ending.exit_code:
            logger.warning(
                "The process of '%s' ended with code %d after its outputs were saved",
                record.node,
                ending.exit_code,
            )

    def _explain(self, ending: Ending) -> GpuNodeError:
        error = explain(self._node, ending, self.record, remedy=self._resources.remedy)
        if self._is_stopped:  # Kedro tells no hook either of a node that Ctrl-C ends
            self.record.outcome = "stopped"
        elif not ending.told_hooks and ending.failure is None:
            # nobody in the node's process could
            self._shared.hooks.fire(
                "on_node_error",
                error=error,
                node=self._node,
                catalog=self._shared.catalog,
                inputs=ending.inputs,
                is_async=self._shared.is_async,
                run_id=self._shared.run_id,
            )
        elif ending.failure is not None and not ending.failure.is_usage_error:
            logger.error("'%s' failed:\n%s", self._node.name, ending.failure.traceback)
        return error

    def _wait_for_memory(self) -> None:
        if self._is_shared:
            return
        deadline = time.monotonic() + RELEASE_SECONDS
        for device, before in self._used_before.items():
            held = self._held_since(device, before)
            while held > RELEASED_WITHIN_BYTES and time.monotonic() < deadline:
                time.sleep(0.05)
                held = self._held_since(device, before)
            if held > RELEASED_WITHIN_BYTES:
                logger.warning(
                    "cuda:%d still holds %s more than before '%s' ran",
                    device.index,
                    gigabytes(held),
                    self._node.name,
                )

    def _held_since(self, device: Device, before: int | None) -> int:
        try:
            used = self._layer.used_bytes(device)
        except CudaRunnerError as error:  # the node is done, and saved, all the same
            logger.warning("%s", error)
            return 0
        return 0 if before is None or used is None else used - before
