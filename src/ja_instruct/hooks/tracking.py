"""The hook that tracks runs with MLflow."""

from __future__ import annotations

import logging
import os
import socket
import time
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import psutil
from kedro.framework.hooks import hook_impl
from kedro_mlflow.framework.hooks.mlflow_hook import MlflowHook
from mlflow.exceptions import MlflowException
from pydantic import BaseModel

from ja_instruct.errors import InputError
from ja_instruct.hooks.forgiving_store import forgive
from ja_instruct.hooks.tracking_store import SQLITE, prepare_store
from ja_instruct.hooks.untracked import Untracked, describe, read_status, without_password
from kedro_freshness.messages import shortened

if TYPE_CHECKING:
    from kedro.framework.context import KedroContext
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node

logger = logging.getLogger(__name__)

# the tag of a run: the host, the process and the start of the process
PROCESS_TAG = "ja_instruct.process"
# the files of what was not tracked, below the folder of the reports
PATTERN = "*/untracked_*.jsonl"
# the clock may have been set since a process was recorded
START_TOLERANCE_SECONDS = 60
URI_VARIABLE = "MLFLOW_TRACKING_URI"
# stores that say themselves where artifacts go
SERVERS = ("http://", "https://", "databricks")
# they log an error that is handled here, with its traceback, and each try of a request
NOISY_LOGGERS = ("mlflow.store.db.utils", "urllib3.connectionpool")


class FlatParametersMlflowHook(MlflowHook):  # type: ignore[misc]
    """kedro-mlflow's hook for typed parameters, runs started in a subfolder, and lost stores.

    Typed parameters are logged one by one (``sft.lora.lora_r``). A relative SQLite path is
    resolved against the project's folder. A run goes on without a store, and its end is recorded
    by the next run if its process was killed.
    """

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Prepare the store before kedro-mlflow opens it.

        Raises:
            InputError: The experiment is deleted, and is not to be restored or cannot be.
        """
        config = deepcopy(context.config_loader["mlflow"])
        server = config.setdefault("server", {})
        # kedro-mlflow reads the variable if the configuration has null
        uri = str(server.get("mlflow_tracking_uri") or os.environ.get(URI_VARIABLE) or "")
        self._reports = context.project_path / "data/08_reporting"
        untracked = Untracked(without_password(uri), _path_of_untracked(context, self._reports))
        if uri.startswith(SQLITE):
            path = context.project_path / uri.removeprefix(SQLITE)
            server["mlflow_tracking_uri"] = f"{SQLITE}{path}"
            untracked.store, untracked.file = shortened(path), path
            problem = prepare_store(path)
            if problem is not None:
                untracked.give_up(problem)
        elif uri.startswith(SERVERS):
            _leave_artifacts_to_the_server(config)
        context.config_loader["mlflow"] = config
        for name in NOISY_LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        forgive(untracked)
        try:
            super().after_context_created(context)
        except MlflowException as error:
            raise InputError(
                f"MLflow refuses its experiment: {describe(error)} Set tracking.experiment in "
                f"mlflow.yml: another 'name', or 'restore_if_deleted: true'"
            ) from error

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Start a run with the tag of this process; end those whose processes have ended."""
        params = {**run_params, PROCESS_TAG: _tag_of(psutil.Process())}
        super().before_pipeline_run(params, pipeline, catalog)
        run = mlflow.active_run()
        if run is not None:
            _end_runs_of_ended_processes(run.info.experiment_id, self._reports)

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


def _leave_artifacts_to_the_server(config: dict[str, Any]) -> None:
    """Remove a local folder as the place of artifacts: ``conf/base`` names one for its own store.

    An address, such as that of a bucket, stays.
    """
    experiment = (config.get("tracking") or {}).get("experiment") or {}
    created = experiment.get("create_experiment_kwargs") or {}
    if "://" not in str(created.get("artifact_location")):
        created.pop("artifact_location", None)


def _path_of_untracked(context: KedroContext, reports: Path) -> Path:
    names = context.config_loader["globals"]
    begun = time.strftime("%m%d_%H%M%S")
    return Path(reports, names.get("run_name", context.env), f"untracked_{begun}.jsonl")


def _tag_of(process: psutil.Process) -> str:
    return f"{socket.gethostname()} {process.pid} {process.create_time():.0f}"


def _end_runs_of_ended_processes(experiment_id: str, reports: Path) -> None:
    """End the runs that are RUNNING though their process on this host has ended.

    A process that was killed has left no status, one that could not store it has written it to its
    file of what was not tracked.
    """
    client = mlflow.MlflowClient()
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        if _has_ended(run.data.tags.get(PROCESS_TAG, "")):
            written = (read_status(path, run.info.run_id) for path in reports.glob(PATTERN))
            status = next(filter(None, written), "KILLED")
            client.update_run(run.info.run_id, status=status)


def _has_ended(tag: str) -> bool:
    """Return whether the tag is that of a process of this host that has ended."""
    host, _, process = tag.partition(" ")
    if host != socket.gethostname():
        return False
    pid, started = process.split()
    try:
        age = psutil.Process(int(pid)).create_time() - float(started)
    except psutil.NoSuchProcess:
        return True
    return bool(abs(age) > START_TOLERANCE_SECONDS)
