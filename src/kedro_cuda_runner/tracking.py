"""The MLflow run that nodes in other threads and processes continue."""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import wrapt

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Tracking:
    """An MLflow run that is open.

    Attributes:
        uri: The tracking store.
        run_id: The run.
    """

    uri: str
    run_id: str


def active_tracking() -> Tracking | None:
    """Return this thread's MLflow run; None without one, and MLflow is not imported to find out."""
    mlflow = sys.modules.get("mlflow")
    run = mlflow.active_run() if mlflow is not None else None
    if mlflow is None or run is None:
        return None
    return Tracking(mlflow.get_tracking_uri(), run.info.run_id)


@contextmanager
def continued(tracking: Tracking | None) -> Iterator[None]:
    """Make a run active in this thread, and leave it running.

    MLflow keeps its active run by thread. Where none is active, whatever logs next would open a
    run of its own, and transformers' callback would end the run that it finds by its id.
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
    """Make a run active in this process as soon as, and only if, MLflow is imported.

    Its import takes seconds, which most nodes can do without.
    """
    with ExitStack() as opened:
        if tracking is not None:
            wrapt.register_post_import_hook(
                lambda _: opened.enter_context(continued(tracking)), "mlflow"
            )
        yield
