"""The MLflow run that nodes in other threads and processes continue; MLflow is optional."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Tracking:
    """An active MLflow run: the URI of the tracking store and the id of the run."""

    uri: str
    run_id: str


def active_tracking() -> Tracking | None:
    """Return this thread's MLflow run; None without one. MLflow is not imported for this."""
    mlflow = sys.modules.get("mlflow")
    if mlflow is None or (run := mlflow.active_run()) is None:
        return None
    return Tracking(mlflow.get_tracking_uri(), run.info.run_id)


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
