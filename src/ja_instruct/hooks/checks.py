"""Hooks that refuse a run that would fail, and a run that has failed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import mlflow
from kedro.framework.hooks import hook_impl

from ja_instruct.errors import InputError
from ja_instruct.memory.resources import parameters_of
from ja_instruct.preflight.parameters import check_parameters
from ja_instruct.preflight.resources import environments_without_gpu
from ja_instruct.preflight.run import check_run

if TYPE_CHECKING:
    from kedro.framework.context import KedroContext
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline


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
