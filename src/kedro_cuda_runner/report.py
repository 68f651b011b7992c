"""The record of each node's run, as a table on the terminal and in MLflow."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from kedro.framework.hooks import hook_impl
from rich import box
from rich.console import Console
from rich.table import Table

from kedro_cuda_runner.formatting import duration, gigabytes

logger = logging.getLogger(__name__)

ON_CPU = "CPU"


@dataclass
class NodeRecord:
    """One node's run.

    Attributes:
        place: ``CPU``, ``CPU, own process``, or the devices: ``cuda:0 (NVIDIA H100)``.
        devices: Indices of the devices.
        outcome: ``done``, ``failed``, ``stopped`` or ``running``.
        started_seconds: Start, from the start of the run.
        seconds: Wall time, including start of the process, loading and saving.
        peak_bytes: Highest GPU memory on one of its devices.
        estimated_bytes: Declared GPU memory.
        available_bytes: Free memory on each device at the start.
        device_bytes: Total memory of each device.
        mean_utilization_percent: Mean utilization of its devices, as in nvidia-smi.
        host_peak_bytes: Highest total resident memory of its processes.
        parts: Breakdown of the declared memory in bytes.
    """

    node: str
    place: str = ON_CPU
    devices: tuple[int, ...] = ()
    outcome: str = "running"
    started_seconds: float = 0.0
    seconds: float = 0.0
    peak_bytes: int | None = None
    estimated_bytes: int | None = None
    available_bytes: int = 0
    device_bytes: int = 0
    mean_utilization_percent: float | None = None
    host_peak_bytes: int = 0
    parts: dict[str, int] = field(default_factory=dict)


def build_table(records: Sequence[NodeRecord]) -> Table:
    """Return the table for the terminal; without devices it has no columns for them."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("node", overflow="fold")
    table.add_column("device", no_wrap=True)
    has_devices = any(record.devices for record in records)
    for heading in ("time", "peak memory", "estimate", "GPU busy")[: 4 if has_devices else 1]:
        table.add_column(heading, justify="right", no_wrap=True)
    for record in records:
        is_done, seconds = record.outcome == "done", duration(record.seconds)
        used = record.mean_utilization_percent
        cells = (
            record.node,
            ", ".join(f"cuda:{index}" for index in record.devices) or record.place,
            seconds if is_done else f"{record.outcome} after {seconds}",
            "" if record.peak_bytes is None else gigabytes(record.peak_bytes),
            "" if record.estimated_bytes is None else gigabytes(record.estimated_bytes),
            "" if used is None else f"{used:.0f} %",
        )
        table.add_row(*cells[: len(table.columns)], style="" if is_done else "red")
    return table


def log_to_mlflow(records: Sequence[NodeRecord]) -> None:
    """Log the records to this thread's MLflow run, if there is one.

    Metrics ``node.<node>.seconds``, ``.peak_gpu_gb``, ``.estimated_gpu_gb``, ``.gpu_percent`` for
    nodes in their own processes; the artifact ``nodes.json``, which MLflow shows as a table; and
    all records as the artifact ``cuda_runner.json``.
    """
    mlflow = sys.modules.get("mlflow")
    if mlflow is None or mlflow.active_run() is None:
        return
    metrics = {
        f"node.{record.node}.{key}": round(value, 3)
        for record in records
        if record.place != ON_CPU
        for key, value in {
            "seconds": record.seconds,
            "peak_gpu_gb": _gb(record.peak_bytes),
            "estimated_gpu_gb": _gb(record.estimated_bytes),
            "gpu_percent": record.mean_utilization_percent,
        }.items()
        if value is not None
    }
    table = {
        "node": [record.node for record in records],
        "device": [record.place for record in records],
        "outcome": [record.outcome for record in records],
        "seconds": [round(record.seconds, 1) for record in records],
        "peak GPU memory, GB": [_gb(record.peak_bytes, 2) for record in records],
        "estimate, GB": [_gb(record.estimated_bytes, 2) for record in records],
        "GPU busy, %": [
            None if used is None else round(used, 1)
            for used in (record.mean_utilization_percent for record in records)
        ],
    }
    try:
        mlflow.log_metrics(metrics)
        mlflow.log_table(table, "nodes.json")
        mlflow.log_dict({"nodes": [asdict(record) for record in records]}, "cuda_runner.json")
    except Exception as error:  # an unreachable store must not hide the result of the run
        logger.warning("The table of nodes could not be logged to MLflow: %s", error)


def _gb(size: int | None, digits: int = 3) -> float | None:
    return None if size is None else round(size / 1e9, digits)


class TableHook:
    """Prints the table after all other hooks; the records are read at the end of the run."""

    def __init__(self, records: Sequence[NodeRecord]) -> None:
        self._records = records

    @hook_impl(trylast=True)
    def after_pipeline_run(self) -> None:
        """Print the table at the end of a run; the error of a failed one follows it."""
        self.show()

    on_pipeline_error = after_pipeline_run

    def show(self) -> None:
        """Print the table, unless all nodes ran in this process."""
        if any(record.place != ON_CPU for record in self._records):
            Console().print(build_table(self._records))
