"""One node on its devices: its process, its measurements, and the release of its memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from kedro.pipeline.node import Node

from kedro_cuda_runner.devices import Device
from kedro_cuda_runner.errors import GpuNodeError
from kedro_cuda_runner.failures import Ending, explain
from kedro_cuda_runner.formatting import duration, gigabytes
from kedro_cuda_runner.monitor import Watch
from kedro_cuda_runner.node_process import NodeProcess, RunContext
from kedro_cuda_runner.report import NodeRecord
from kedro_cuda_runner.resources import Resources
from kedro_cuda_runner.tracking import continued

logger = logging.getLogger(__name__)

# the driver releases memory a moment after a process has ended
RELEASE_SECONDS = 10.0
RELEASED_WITHIN_BYTES = 64 * 2**20


class Supervisor:
    """Runs and measures one node.

    Attributes:
        devices: Devices of the node.
        record: Its record for the report.
        process: Its process.
    """

    def __init__(
        self, node: Node, required: Resources, devices: Sequence[Device], shared: RunContext
    ) -> None:
        layer = shared.layer
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
        self._remedy = required.remedy
        self._shared = shared
        self.process = NodeProcess(node, devices, layer.environment(devices), shared)
        self._watch = Watch(layer, devices, self.process.pid, self.record)

    def share(self, devices: Sequence[Device]) -> None:
        """Record that another node runs on ``devices``, whose total use is then no measurement."""
        if set(devices) & set(self.devices):
            self._watch.share()

    def run(self) -> GpuNodeError | None:
        """Run the node; blocks. Return the error if it was not finished."""
        self._log_start()
        started = time.perf_counter()
        with continued(self._shared.tracking):
            try:
                ending = self.process.run()
            finally:
                self._watch.stop()
            self.record.seconds = time.perf_counter() - started
            self._update_record(ending)
            error = None if ending.done else self._explain(ending)
        self._wait_for_memory()
        if error is None:
            self._log_end()
        return error

    def _log_start(self) -> None:
        record, estimate = self.record, self.record.estimated_bytes
        if record.devices:
            needed = "" if estimate is None else f", about {gigabytes(estimate)} needed"
            free = gigabytes(record.available_bytes)
            logger.info("%s on %s: %s free%s", record.node, record.place, free, needed)
        else:
            logger.info("%s in its own process, on the CPU", record.node)

    def _log_end(self) -> None:
        record = self.record
        peak = "" if record.peak_bytes is None else f", peak {gigabytes(record.peak_bytes)}"
        logger.info("%s ended after %s%s", record.node, duration(record.seconds), peak)

    def _update_record(self, ending: Ending) -> None:
        record, torch_peak = self.record, ending.torch_peak_bytes
        if record.devices and torch_peak is not None:
            record.peak_bytes = max(record.peak_bytes or 0, torch_peak)
        record.outcome = "done" if ending.done else "failed"
        if ending.done and ending.exit_code:
            logger.warning(
                "The process of '%s' ended with code %d after its outputs were saved",
                record.node,
                ending.exit_code,
            )

    def _explain(self, ending: Ending) -> GpuNodeError:
        error = explain(ending, self.record, remedy=self._remedy)
        if self.process.is_stopping:
            pass  # Kedro calls no hook either for a node that Ctrl-C ends
        elif not ending.reported_to_hooks and ending.failure is None:
            # the node's process died before it could call the hook
            self._shared.hooks.call(
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
        deadline = time.monotonic() + RELEASE_SECONDS
        for device, level in self._watch.levels.items():
            limit = level + RELEASED_WITHIN_BYTES
            while (used := self._watch.used_bytes(device)) is not None and used > limit:
                if time.monotonic() > deadline:
                    logger.warning(
                        "cuda:%d still holds %s more than before '%s' ran",
                        device.index,
                        gigabytes(used - level),
                        self._node.name,
                    )
                    break
                time.sleep(0.05)
