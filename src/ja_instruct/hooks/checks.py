"""Hooks that refuse a run that would fail, and a run that has failed."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any

import mlflow
from kedro.framework.hooks import hook_impl
from kedro.framework.project import LOGGING

from ja_instruct.disk_errors import explain_disk_error
from ja_instruct.errors import InputError, find_message
from ja_instruct.memory.resources import parameters_of
from ja_instruct.preflight.folders import filepath_of
from ja_instruct.preflight.parameters import check_parameters
from ja_instruct.preflight.resources import environments_without_gpu
from ja_instruct.preflight.run import check_run
from ja_instruct.preflight.training import check_steps, nodes_with_unknown_steps

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from kedro.framework.context import KedroContext
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node


# the variable of Kedro that names another file
LOGGING_VARIABLE = "KEDRO_LOGGING_CONFIG"


class WorkingDirectoryHook:
    """Makes a run independent of the folder from which it is started.

    Kedro resolves the ``filepath`` of a catalog entry against the project's folder. Paths in
    parameters (``sft.checkpoint_dir``) and the other paths of catalog entries (``files``,
    ``gguf_filepath``) would depend on the working directory. Kedro looks for ``conf/logging.yml``
    there too.
    """

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Change the working directory, which stays changed, and set up the logging."""
        os.chdir(context.project_path)
        loader: Any = context.config_loader
        found = loader.logging()
        # configuring it again would remove the handlers that others have added since
        if found is not None and found != LOGGING.data and LOGGING_VARIABLE not in os.environ:
            LOGGING.configure(found)


class PreflightHook:
    """Refuses a run that would fail, before its first node.

    A training whose samples the run makes itself is checked again before its node.
    """

    _context: KedroContext
    _checked_later: Sequence[Node] = ()

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
        nodes = check_run(
            pipeline,
            catalog,
            only_missing_outputs=run_params["only_missing_outputs"],
            cpu_environments=lambda: environments_without_gpu(self._context),
            runner=run_params["runner"],
        )
        self._checked_later = nodes_with_unknown_steps(nodes)

    @hook_impl
    def before_node_run(self, node: Node, catalog: DataCatalog) -> None:
        """Check the number of steps of a training, which was not known before the run."""
        if node in self._checked_later:
            check_steps(node, catalog)


def _is_not_input_error(_: logging.LogRecord) -> bool:
    return not isinstance(sys.exc_info()[1], InputError)


class ErrorMessageHook:
    """Reports an error that the user can correct as one message, without a traceback.

    Kedro's catalog wraps an error of a dataset, and a disk may be full for any library.
    """

    @hook_impl
    def after_context_created(self) -> None:
        """Drop Kedro's log record of a node's error if it repeats the message."""
        logging.getLogger("kedro.pipeline.node").addFilter(_is_not_input_error)

    @hook_impl(wrapper=True)  # after every other hook has seen the error
    def on_pipeline_error(
        self, error: Exception, catalog: DataCatalog
    ) -> Generator[None, Any, Any]:
        """Replace the error that ends the run.

        Raises:
            InputError: The error was raised from an ``InputError``, or by the disk.
        """
        results = yield
        name = str(error).partition(":")[0]
        target = filepath_of(catalog.get(name)) if name in catalog else None
        message = find_message(error) or explain_disk_error(error, target)
        if message and not isinstance(error, InputError):
            raise InputError(message) from error
        return results


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
            name = node.outputs[1]
            report = catalog.load(name)
            if not report["failed"]:  # loading answers takes half a second
                continue
            base = name.removesuffix("inference_report") + "base_answers"
            count = len(catalog.load(base)) if catalog.exists(base) else 0
            _, parameters = parameters_of(node, catalog, "inference")
            try:
                require_all_answered(report, count, parameters)
            except InputError:
                if mlflow.active_run() is not None:
                    mlflow.end_run("FAILED")
                raise
