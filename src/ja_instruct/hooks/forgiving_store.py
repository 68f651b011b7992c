"""Tracking stores and artifact repositories of MLflow that do not fail.

All of MLflow's calls, those of transformers' callback and of other processes too, reach the
tracking store or an artifact repository. MLflow builds both by functions that are registered for
the scheme of a URI. Here they are replaced.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import wrapt
from mlflow.entities import Experiment, Run, RunData, RunInfo, RunStatus
from mlflow.store.artifact import artifact_repository_registry
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.tracking._tracking_service import utils
from mlflow.utils.async_logging.async_logging_queue import AsyncLoggingQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from mlflow.entities import Metric, Param, RunTag

    from ja_instruct.hooks.untracked import Untracked

Result = TypeVar("Result")


class ForgivingStore(wrapt.ObjectProxy[Any]):
    """A tracking store whose methods for runs do not fail.

    Attributes of a proxy begin with ``_self_``; all others are those of the store.
    """

    def __init__(self, store: AbstractStore, untracked: Untracked) -> None:
        super().__init__(store)
        self._self_untracked = untracked
        self._self_runs: dict[str, Run] = {}
        # what is logged asynchronously
        store._async_logging_queue = AsyncLoggingQueue(logging_func=self.log_batch)

    def get_experiment_by_name(self, experiment_name: str) -> Experiment | None:
        """Return an experiment; without MLflow, one that is not stored."""
        name = experiment_name
        return self._try("get_experiment_by_name", (name,), lambda: _experiment(name))

    def get_experiment(self, experiment_id: str) -> Experiment:
        """Return an experiment; without MLflow, one that is not stored."""
        return self._try("get_experiment", (experiment_id,), lambda: _experiment(""))

    def create_experiment(
        self, name: str, artifact_location: str | None = None, tags: Any = None
    ) -> str:
        """Create an experiment, unless another process has just created it."""
        return self._try(
            "create_experiment",
            (name, artifact_location, tags),
            lambda: (self.get_experiment_by_name(name) or _experiment(name)).experiment_id,
        )

    def create_run(
        self, experiment_id: str, user_id: str, start_time: int, tags: list[RunTag], run_name: str
    ) -> Run:
        """Create a run; without MLflow, one that is not stored."""

        def create() -> Run:
            untracked = self._self_untracked
            untracked.give_up()
            untracked.run_id = run_id = uuid.uuid4().hex
            location = untracked.artifacts.absolute().as_uri()
            run = _run(run_id, experiment_id, user_id, start_time, location, run_name)
            untracked.write(_records((), (), tags))
            return run

        values = (experiment_id, user_id, start_time, tags, run_name)
        return self._remember(self._try("create_run", values, create))

    def get_run(self, run_id: str) -> Run:
        """Return a run as MLflow knows it, or as it was known last."""
        return self._remember(self._try("get_run", (run_id,), lambda: self._known(run_id)))

    def update_run_info(
        self, run_id: str, run_status: int, end_time: int | None, run_name: str | None
    ) -> RunInfo:
        """Set a run's status; that of a run that ends is tried even if MLflow failed just now."""
        is_end = RunStatus.is_terminated(run_status)

        def write() -> RunInfo:
            if is_end:
                status = RunStatus.to_string(run_status)
                self._self_untracked.write(
                    [{"run_id": run_id, "status": status, "timestamp": end_time}]
                )
            return self._known(run_id).info

        values = (run_id, run_status, end_time, run_name)
        return self._try("update_run_info", values, write, although_waiting=is_end)

    def search_runs(self, *args: Any, **kwargs: Any) -> PagedList[Run]:
        """Return runs; without MLflow, none."""
        return self._try("search_runs", args, lambda: PagedList[Run]([], None), kwargs)

    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Metric],
        params: Sequence[Param],
        tags: Sequence[RunTag],
    ) -> None:
        """Log metrics, parameters and tags."""
        self._try(
            "log_batch",
            (run_id, metrics, params, tags),
            lambda: self._self_untracked.write(_records(metrics, params, tags)),
        )

    def log_metric(self, run_id: str, metric: Metric) -> None:
        """Log a metric."""
        self.log_batch(run_id, [metric], [], [])

    def log_param(self, run_id: str, param: Param) -> None:
        """Log a parameter."""
        self.log_batch(run_id, [], [param], [])

    def set_tag(self, run_id: str, tag: RunTag) -> None:
        """Log a tag."""
        self.log_batch(run_id, [], [], [tag])

    def _try(
        self,
        method: str,
        args: Sequence[Any],
        otherwise: Callable[[], Result],
        kwargs: dict[str, Any] | None = None,
        *,
        although_waiting: bool = False,
    ) -> Result:
        untracked = self._self_untracked
        if not untracked.is_waiting or (although_waiting and not untracked.is_given_up):
            try:
                result: Result = getattr(self.__wrapped__, method)(*args, **(kwargs or {}))
                return result
            except Exception as error:  # of a database, the network, or MLflow
                untracked.note(error)
        return otherwise()

    def _remember(self, run: Run) -> Run:
        self._self_runs[run.info.run_id] = run
        self._self_untracked.run_id = self._self_untracked.run_id or run.info.run_id
        return run

    def _known(self, run_id: str) -> Run:
        location = self._self_untracked.artifacts.absolute().as_uri()
        return self._self_runs.get(run_id) or _run(run_id, "0", "", 0, location, "")


class ForgivingArtifacts(wrapt.ObjectProxy[Any]):
    """An artifact repository whose methods for logging do not fail."""

    def __init__(self, repository: Any, untracked: Untracked) -> None:
        super().__init__(repository)
        self._self_untracked = untracked

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """Log a file."""
        self._log("log_artifact", local_file, artifact_path)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Log a folder."""
        self._log("log_artifacts", local_dir, artifact_path)

    def _log(self, method: str, source: str, artifact_path: str | None) -> None:
        untracked = self._self_untracked
        if not untracked.is_waiting:
            try:
                getattr(self.__wrapped__, method)(source, artifact_path)
                return
            except Exception as error:  # of the file system, the network, or MLflow
                is_local = isinstance(self.__wrapped__, LocalArtifactRepository)
                untracked.note(error, is_of_one_request=is_local)
        untracked.keep_artifact(method, source, artifact_path)


@dataclass(frozen=True)
class ForgivingBuilder:
    """Builds a tracking store that does not fail. Other processes of the run receive a copy."""

    build: Callable[..., AbstractStore]
    untracked: Untracked

    def __call__(self, store_uri: str, artifact_uri: str | None = None) -> ForgivingStore:
        """Build the store, and let artifact repositories be built that do not fail either."""
        forgive_artifacts(self.untracked)
        store: AbstractStore = AbstractStore()  # type: ignore[abstract]  # no method is called
        if not self.untracked.is_given_up:
            try:
                store = self.build(store_uri=store_uri, artifact_uri=artifact_uri)
            except Exception as error:  # of a database, the network, or MLflow
                self.untracked.note(error)
                self.untracked.give_up()
        return ForgivingStore(store, self.untracked)


def forgive(untracked: Untracked) -> None:
    """Build stores from now on that do not fail, and write to ``untracked`` instead."""
    registry = utils._tracking_store_registry
    for scheme, build in registry._registry.items():
        build = build.build if isinstance(build, ForgivingBuilder) else build
        registry.register(scheme, ForgivingBuilder(build, untracked))
    # the stores of an earlier run in this process
    registry._get_store_with_resolved_uri.cache_clear()
    utils._artifact_repos_cache.clear()


def path_of_untracked() -> Path | None:
    """Return the file of what MLflow did not take from this run; None if it took everything."""
    untracked = getattr(utils._get_store(), "_self_untracked", None)
    return untracked.path if untracked is not None and untracked.path.exists() else None


def forgive_artifacts(untracked: Untracked) -> None:
    """Build artifact repositories from now on that do not fail."""
    registry = artifact_repository_registry._artifact_repository_registry
    for scheme, build in registry._registry.items():
        original = getattr(build, "original", build)

        def wrap(*args: Any, original: Any = original, **kwargs: Any) -> ForgivingArtifacts:
            return ForgivingArtifacts(original(*args, **kwargs), untracked)

        wrap.original = original  # type: ignore[attr-defined]
        registry.register(scheme, wrap)


def _experiment(name: str) -> Experiment:
    return Experiment("0", name, "", "active")


def _run(
    run_id: str, experiment_id: str, user_id: str, start_time: int, location: str, name: str
) -> Run:
    info = RunInfo(
        run_id, experiment_id, user_id, "RUNNING", start_time, None, "active", location, name
    )
    return Run(info, RunData())


def _records(
    metrics: Sequence[Metric], params: Sequence[Param], tags: Sequence[RunTag]
) -> Iterator[dict[str, Any]]:
    for metric in metrics:
        yield {
            "metric": metric.key,
            "value": metric.value,
            "step": metric.step,
            "timestamp": metric.timestamp,
        }
    for kind, entries in (("param", params), ("tag", tags)):
        for entry in entries:
            yield {kind: entry.key, "value": str(entry.value)}
