"""The hook that logs a line per finished stage."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import mlflow
from kedro.framework.hooks import hook_impl

from ja_instruct.hooks.forgiving_store import path_of_untracked
from ja_instruct.hooks.untracked import without_password
from ja_instruct.preflight.folders import filepath_of
from ja_instruct.preflight.run import nodes_to_run
from kedro_cuda_runner.formatting import duration
from kedro_freshness.messages import shortened

if TYPE_CHECKING:
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node
    from mlflow.entities import RunInfo

logger = logging.getLogger(__name__)

STAGES = ("data_filtering", "quantization", "sft", "rag_index", "inference", "reporting")
RESULTS = {"filter_page": "Filter", "answers": "Answers", "adapter": "Adapter"}


class ProgressHook:
    """Times every node; logs a line per finished stage, its figures to MLflow, and the results."""

    def __init__(self) -> None:
        """Start without a run."""
        self._remaining: dict[str, set[str]] = {}
        self._summaries: dict[str, dict[str, Any]] = {}
        self._seconds: dict[str, dict[str, float]] = {}
        self._node_started: dict[str, float] = {}
        self._started = 0.0

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Note which outputs each stage will save; log the stages that are skipped."""
        nodes = nodes_to_run(
            pipeline, catalog, only_missing_outputs=run_params["only_missing_outputs"]
        )
        self._remaining = {
            stage: {name for node in nodes if stage in node.tags for name in node.outputs}
            for stage in STAGES
        }
        finished = [
            stage
            for stage, outputs in self._remaining.items()
            if not outputs and any(stage in node.tags for node in pipeline.nodes)
        ]
        if finished:
            logger.info("Finished before, skipped: %s", ", ".join(finished))
        self._summaries = {}
        self._seconds = {stage: defaultdict(float) for stage in STAGES}
        self._node_started = {}
        self._started = time.perf_counter()

    @hook_impl
    def before_dataset_loaded(self, node: Node) -> None:
        """Start a node's clock when it begins to load: downloads are part of its time."""
        self._node_started.setdefault(node.name, time.perf_counter())

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any, node: Node) -> None:
        """Keep the summary of a report; finish a stage when all its outputs are saved."""
        now = time.perf_counter()
        for stage in (stage for stage in STAGES if stage in node.tags):
            self._seconds[stage][node.name] += now - self._node_started.get(node.name, now)
            if isinstance(data, dict) and isinstance(data.get("summary"), dict):
                self._summaries[stage] = data["summary"]
            self._remaining[stage].discard(dataset_name)
            if not self._remaining[stage]:
                self._finish(stage)
        self._node_started[node.name] = now  # for the node's next output

    @hook_impl(tryfirst=True)  # while the MLflow run is open
    def after_pipeline_run(self, catalog: DataCatalog, pipeline: Pipeline) -> None:
        """Log where the results are, the report last."""
        logger.info("Finished in %s", duration(time.perf_counter() - self._started))
        paths = {
            name: path
            for name in pipeline.all_outputs() & {*RESULTS, "run_report"}
            if (path := filepath_of(catalog.get(name))) is not None
        }
        for name, label in RESULTS.items():
            if name in paths:
                logger.info("%-8s %s", label, shortened(paths[name]))
        run = mlflow.active_run()
        if run is not None:
            _log_tracking(run.info)
        if (report := paths.get("run_report")) is not None:
            if run is not None and report.is_file():
                mlflow.log_artifact(str(report))
            logger.info("%-8s %s", "Report", shortened(report))

    def _finish(self, stage: str) -> None:
        summary = self._summaries.get(stage, {})
        seconds = self._seconds[stage]
        figures = ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in summary.items())
        total = sum(seconds.values())
        logger.info("%s done in %s%s", stage, duration(total), f": {figures}" if figures else "")
        if mlflow.active_run() is not None:
            times = {f"{node}.seconds": spent for node, spent in seconds.items()}
            times["stage_seconds"] = total
            metrics = {**summary, **{name: round(spent, 2) for name, spent in times.items()}}
            mlflow.log_metrics({f"{stage}.{key}": float(value) for key, value in metrics.items()})


def _log_tracking(run: RunInfo) -> None:
    """Log where the tracked run is, or what was not tracked."""
    untracked, uri = path_of_untracked(), without_password(mlflow.get_tracking_uri())
    if untracked is not None:
        logger.warning("%-8s not tracked in full, see %s", "MLflow", shortened(untracked))
    elif uri.startswith("http"):
        path = f"#/experiments/{run.experiment_id}/runs/{run.run_id}"
        logger.info("%-8s %s/%s", "MLflow", uri.rstrip("/"), path)
    else:
        logger.info("%-8s run %s; 'make mlflow' shows it", "MLflow", run.run_id)
