"""The last word of a run: where each node ran, for how long, and what it used."""

from __future__ import annotations

import logging
import sys
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks import hook_impl
from rich import box
from rich.console import Console
from rich.table import Table

from kedro_cuda_runner.formatting import duration, gigabytes

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)

ARTIFACT = "cuda_runner.json"
TABLE_ARTIFACT = "nodes.json"
ON_CPU = "CPU"


@dataclass
class NodeRecord:
    """What is known of one node's run.

    Attributes:
        node: Its name.
        place: ``CPU``, ``CPU, own process``, or the devices: ``cuda:0 (NVIDIA H100)``.
        devices: Their numbers.
        outcome: ``done``, ``failed``, ``stopped`` or ``running``.
        started_seconds: When it started, from the start of the run.
        seconds: Wall time, with starting its process, loading and saving.
        peak_bytes: Highest GPU memory on one of its devices.
        estimated_bytes: What that was expected to be.
        available_bytes: What was free on each device when it started.
        device_bytes: What each device has.
        mean_utilization_percent: Mean of the devices' utilization, as nvidia-smi gives it.
        host_peak_bytes: Highest resident memory of its processes.
        parts: What the estimate is made of, in bytes.
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
    """Return a table of nodes for the terminal; without devices it has no figures of them."""
    has_devices = any(record.devices for record in records)
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("node", overflow="fold")
    table.add_column("device", no_wrap=True)
    figures = ("peak memory", "estimate", "GPU busy") if has_devices else ()
    for heading in ("time", *figures):
        table.add_column(heading, justify="right", no_wrap=True)
    for record in records:
        seconds = duration(record.seconds)
        used = record.mean_utilization_percent
        cells = (
            record.node,
            ", ".join(f"cuda:{index}" for index in record.devices) or record.place,
            seconds if record.outcome == "done" else f"{record.outcome} after {seconds}",
            "" if record.peak_bytes is None else gigabytes(record.peak_bytes),
            "" if record.estimated_bytes is None else gigabytes(record.estimated_bytes),
            "" if used is None else f"{used:.0f} %",
        )
        table.add_row(
            *cells[: len(table.columns)],
            style="" if record.outcome == "done" else "red",
        )
    return table


def log_to_mlflow(records: Sequence[NodeRecord]) -> None:
    """Log the records to this thread's MLflow run, if there is one.

    Metrics ``node.<node>.seconds``, ``.peak_gpu_gb``, ``.estimated_gpu_gb``, ``.gpu_percent`` for
    nodes with a process of their own; the table as the artifact ``nodes.json``, which MLflow shows
    as one, and the records whole as ``cuda_runner.json``.
    """
    mlflow = sys.modules.get("mlflow")
    if mlflow is None or mlflow.active_run() is None:
        return
    metrics: dict[str, float] = {}
    for record in records:
        if record.place != ON_CPU:
            prefix = f"node.{record.node}"
            figures = {
                "seconds": record.seconds,
                "peak_gpu_gb": None if record.peak_bytes is None else record.peak_bytes / 1e9,
                "estimated_gpu_gb": (
                    None if record.estimated_bytes is None else record.estimated_bytes / 1e9
                ),
                "gpu_percent": record.mean_utilization_percent,
            }
            metrics |= {
                f"{prefix}.{key}": round(value, 3)
                for key, value in figures.items()
                if value is not None
            }
    try:
        mlflow.log_metrics(metrics)
        mlflow.log_table(_columns(records), TABLE_ARTIFACT)
        mlflow.log_dict({"nodes": [asdict(record) for record in records]}, ARTIFACT)
    except Exception as error:  # a store that is out of reach must not hide how the run went
        logger.warning("The table of nodes could not be logged to MLflow: %s", error)


def _columns(records: Sequence[NodeRecord]) -> dict[str, list[Any]]:
    def gb(size: int | None) -> float | None:
        return None if size is None else round(size / 1e9, 2)

    busy = [record.mean_utilization_percent for record in records]
    return {
        "node": [record.node for record in records],
        "device": [record.place for record in records],
        "outcome": [record.outcome for record in records],
        "seconds": [round(record.seconds, 1) for record in records],
        "peak GPU memory, GB": [gb(record.peak_bytes) for record in records],
        "estimate, GB": [gb(record.estimated_bytes) for record in records],
        "GPU busy, %": [None if one is None else round(one, 1) for one in busy],
    }


class TableHook:
    """Prints the table when everybody else has had their say."""

    def __init__(self, records: Sequence[NodeRecord]) -> None:
        """Take the records; they are read when the run has ended."""
        self._records = records

    @hook_impl(trylast=True)
    def after_pipeline_run(self) -> None:
        """Print the table of a run that went well."""
        self.show()

    @hook_impl(trylast=True)
    def on_pipeline_error(self) -> None:
        """Print the table of a run that did not; the error comes after it."""
        self.show()

    def show(self) -> None:
        """Print the table; of a run without GPU nodes there is nothing to tell."""
        if any(record.place != ON_CPU for record in self._records):
            Console().print(build_table(self._records))
