"""Kedro hooks: working directory, checks before and after a run, MLflow, a log line per stage."""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from kedro.framework.hooks import hook_impl
from kedro_mlflow.framework.hooks.mlflow_hook import MlflowHook
from pydantic import BaseModel

from ja_instruct.errors import InputError
from ja_instruct.memory.resources import parameters_of
from ja_instruct.preflight.parameters import check_parameters
from ja_instruct.preflight.resources import environments_without_gpu
from ja_instruct.preflight.run import check_run, filepath_of, nodes_to_run
from kedro_cuda_runner.formatting import duration

if TYPE_CHECKING:
    from kedro.framework.context import KedroContext
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node

logger = logging.getLogger(__name__)

SQLITE = "sqlite:///"
STAGES = ("data_filtering", "quantization", "sft", "rag_index", "inference", "reporting")
RESULTS = {"filter_page": "Filter", "answers": "Answers", "adapter": "Adapter"}


class WorkingDirectoryHook:
    """Makes the project's folder the working directory of the process.

    Kedro resolves the ``filepath`` of a catalog entry against the project's folder. Paths in
    parameters (``sft.checkpoint_dir``) and the other paths of catalog entries (``files``,
    ``gguf_filepath``) would depend on the folder from which a run is started.
    """

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Change the working directory; it stays changed after the run."""
        os.chdir(context.project_path)


class PreflightHook:
    """Refuses a run that would fail, before its first node."""

    _context: KedroContext

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Validate every parameter."""
        self._context = context
        check_parameters(context)

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Check inputs, devices, memory and disk; report all problems at once."""
        check_run(
            pipeline,
            catalog,
            only_missing_outputs=run_params["only_missing_outputs"],
            cpu_environments=lambda: environments_without_gpu(self._context),
            runner=run_params["runner"],
        )


class FlatParametersMlflowHook(MlflowHook):  # type: ignore[misc]
    """kedro-mlflow's hook for typed parameters and runs started in a subfolder.

    Typed parameters are logged one by one (``sft.lora.lora_r``). A relative SQLite path is
    resolved against the project's folder.
    """

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Make the path of the store absolute before kedro-mlflow opens it."""
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
        """Pass typed parameters to kedro-mlflow as dictionaries, which it can flatten."""
        plain = {
            name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
            for name, value in inputs.items()
        }
        super().before_node_run(node, catalog, plain, is_async)


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
                logger.info("%-8s %s", label, _shortened(paths[name]))
        run = mlflow.active_run()
        if run is not None:
            logger.info("%-8s run %s; 'make mlflow' shows it", "MLflow", run.info.run_id)
        if (report := paths.get("run_report")) is not None:
            if run is not None and report.is_file():
                mlflow.log_artifact(str(report))
            logger.info("%-8s %s", "Report", _shortened(report))

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


class UnansweredTasksHook:
    """Ends a run with an error if tasks have no answer.

    A hook and not a node, because everything must be saved before, whatever else the run computes,
    and ``--only-missing-outputs`` must not skip it. Registered after kedro-mlflow's hook, so that
    it is called before it, while the MLflow run is open.
    """

    @hook_impl
    def after_pipeline_run(self, catalog: DataCatalog, pipeline: Pipeline) -> None:
        """Check the saved ``inference_report`` of each node that answers tasks.

        Raises:
            InputError: Tasks have no answer; the MLflow run has failed then.
        """
        from ja_instruct.pipelines.inference.answering import require_all_answered
        from ja_instruct.pipelines.inference.nodes import answer_tasks

        for node in (node for node in pipeline.nodes if node.func is answer_tasks):
            report = node.outputs[1]
            base = report.removesuffix("inference_report") + "base_answers"
            count = len(catalog.load(base)) if catalog.exists(base) else 0
            _, parameters = parameters_of(node, catalog, "inference")
            try:
                require_all_answered(catalog.load(report), count, parameters)
            except InputError:
                if mlflow.active_run() is not None:
                    mlflow.end_run("FAILED")
                raise


def _shortened(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
