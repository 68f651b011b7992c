"""The MLflow run that nodes in other threads and processes continue; MLflow is optional."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tracking:
    """An active MLflow run.

    Attributes:
        uri: URI of the tracking store.
        run_id: Id of the run.
        build_store: MLflow's function that builds such a store, or the one that replaces it.
    """

    uri: str
    run_id: str
    build_store: Callable[..., Any]


def active_tracking() -> Tracking | None:
    """Return this thread's MLflow run; None without one. MLflow is not imported for this."""
    mlflow = sys.modules.get("mlflow")
    if mlflow is None or (run := mlflow.active_run()) is None:
        return None
    uri = mlflow.get_tracking_uri()
    return Tracking(uri, run.info.run_id, _store_registry().get_store_builder(uri))


def _store_registry() -> Any:
    from mlflow.tracking._tracking_service.utils import _tracking_store_registry

    return _tracking_store_registry


@contextmanager
def continued(tracking: Tracking | None) -> Iterator[None]:
    """Activate a run in this thread, and leave it running.

    MLflow's active run belongs to a thread. Without it, the next log call would open another run.
    ``MLFLOW_RUN_ID`` is not an alternative: transformers' callback ends the run that it names.
    """
    if tracking is None:
        yield
        return
    import mlflow
    from mlflow.utils.uri import get_uri_scheme

    # in a node's process this is not yet the builder that the runner's process uses
    _store_registry().register(get_uri_scheme(tracking.uri), tracking.build_store)
    mlflow.set_tracking_uri(tracking.uri)
    mlflow.start_run(run_id=tracking.run_id)
    try:
        yield
    finally:
        mlflow.end_run("RUNNING")


@contextmanager
def continued_once_imported(tracking: Tracking | None) -> Iterator[None]:
    """Activate a run in this process once MLflow is imported, which takes seconds, if it is."""
    with ExitStack() as opened:
        if tracking is not None:
            import wrapt

            wrapt.register_post_import_hook(
                lambda _: opened.enter_context(continued(tracking)), "mlflow"
            )
        yield
