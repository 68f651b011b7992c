"""Kedro hooks: checks before a run, one line a stage, the last word, MLflow."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pyarrow
from kedro.framework.hooks import hook_impl
from kedro_mlflow.framework.hooks.mlflow_hook import MlflowHook
from pydantic import BaseModel

from ja_instruct.preflight import (
    check_parameters,
    check_run,
    environments_without_gpu,
    nodes_to_run,
)
from kedro_cuda_runner.formatting import duration

if TYPE_CHECKING:
    from kedro.framework.context import KedroContext
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node

logger = logging.getLogger(__name__)

SQLITE = "sqlite:///"
STAGES = ("data_filtering", "quantization", "sft", "rag_index", "inference", "reporting")


class PreflightHook:
    """Refuses what cannot work before any work is done."""

    _context: KedroContext

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Validate every parameter as soon as there is a configuration.

        Relative paths in parameters are the project's from whichever folder a run is started.
        """
        os.chdir(context.project_path)
        self._context = context
        check_parameters(context)

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Check inputs, devices, memory and disk; report every problem at once."""
        # Arrow's own pool keeps what it has used once, 70 MB in a run of the filter
        pyarrow.set_memory_pool(pyarrow.system_memory_pool())
        check_run(
            pipeline,
            catalog,
            only_missing_outputs=run_params["only_missing_outputs"],
            cpu_environments=lambda: environments_without_gpu(self._context),
            runner=run_params["runner"],
        )


class FlatParametersMlflowHook(MlflowHook):  # type: ignore[misc]
    """kedro-mlflow's hook, made to fit typed parameters and subfolders.

    Typed parameters are logged one by one (``sft.lora.lora_r``), and a relative SQLite store is
    the project's from whichever folder a run is started.
    """

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Make the store's address absolute before kedro-mlflow opens it."""
        config = dict(context.config_loader["mlflow"])
        server = dict(config.get("server", {}))
        uri = str(server.get("mlflow_tracking_uri", ""))
        path = Path(uri.removeprefix(SQLITE))
        if uri.startswith(SQLITE) and not path.is_absolute():
            path = context.project_path / path
            path.parent.mkdir(parents=True, exist_ok=True)
            server["mlflow_tracking_uri"] = f"{SQLITE}{path}"
            context.config_loader["mlflow"] = {**config, "server": server}
        super().after_context_created(context)

    @hook_impl
    def before_node_run(
        self, node: Node, catalog: DataCatalog, inputs: dict[str, Any], is_async: bool
    ) -> None:
        """Hand typed parameters to kedro-mlflow as the dictionaries that it can flatten."""
        plain = {
            name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
            for name, value in inputs.items()
        }
        super().before_node_run(node, catalog, plain, is_async)


class ProgressHook:
    """One line a finished stage, its figures in MLflow, and a summary at the end."""

    def __init__(self) -> None:
        """Start with no stage under way."""
        self._remaining: dict[str, set[str]] = {}
        self._seconds: dict[str, float] = {}
        self._summaries: dict[str, dict[str, Any]] = {}
        self._node_started: dict[str, float] = {}
        self._started = 0.0

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Note which outputs each stage will save."""
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
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._node_started = {}
        self._started = time.perf_counter()

    @hook_impl
    def before_dataset_loaded(self, node: Node) -> None:
        """Start a node's clock where it starts to load: a download is part of its time."""
        self._node_started.setdefault(node.name, time.perf_counter())

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any, node: Node) -> None:
        """Keep a report's summary; when a stage has saved all its outputs, say so."""
        saved_at = time.perf_counter()
        for stage in (stage for stage in STAGES if stage in node.tags):
            self._seconds[stage] += saved_at - self._node_started.get(node.name, saved_at)
            if isinstance(data, dict) and isinstance(data.get("summary"), dict):
                self._summaries[stage] = data["summary"]
            self._remaining[stage].discard(dataset_name)
            if not self._remaining[stage]:
                self._finish(stage)
        # further outputs of the node count from here
        self._node_started[node.name] = saved_at

    @hook_impl(tryfirst=True)  # while the MLflow run is open
    def after_pipeline_run(self, catalog: DataCatalog, pipeline: Pipeline) -> None:
        """Say where the results are, the report last."""
        logger.info("Finished in %s", duration(time.perf_counter() - self._started))
        produced = pipeline.all_outputs()
        results = {"filter_page": "Filter", "answers": "Answers", "adapter": "Adapter"}
        for name, label in results.items():
            if name in produced and (path := _path_of(catalog, name)):
                logger.info("%-8s %s", label, path)
        run = mlflow.active_run()
        if run is not None:
            logger.info("%-8s run %s; 'make mlflow' shows it", "MLflow", run.info.run_id)
        if "run_report" in produced and (path := _path_of(catalog, "run_report")):
            if run is not None and path.is_file():
                mlflow.log_artifact(str(path))
            logger.info("%-8s %s", "Report", path)

    def _finish(self, stage: str) -> None:
        figures = ", ".join(
            f"{key.replace('_', ' ')} {value:,}"
            for key, value in self._summaries.get(stage, {}).items()
        )
        logger.info(
            "%s done in %s%s",
            stage,
            duration(self._seconds[stage]),
            f": {figures}" if figures else "",
        )
        if mlflow.active_run() is not None:
            metrics = {
                **self._summaries.get(stage, {}),
                "stage_seconds": round(self._seconds[stage], 2),
            }
            mlflow.log_metrics({f"{stage}.{key}": float(value) for key, value in metrics.items()})


def _path_of(catalog: DataCatalog, name: str) -> Path | None:
    filepath = getattr(catalog.get(name), "_filepath", None)
    if filepath is None:
        return None
    path, here = Path(filepath), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
