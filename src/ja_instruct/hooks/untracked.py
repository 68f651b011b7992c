"""What MLflow did not take, in a file beside the outputs."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from ja_instruct.tables.json_text import dump
from kedro_freshness.messages import shortened

if TYPE_CHECKING:
    from collections.abc import Iterable

logger = logging.getLogger(__name__)

# a try may take 20 seconds
RETRY_SECONDS = 300
# about one request, not about the store
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS")


def first_cause(error: BaseException) -> BaseException:
    """Return the exception that led to ``error``: of SQLite, or of the connection."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def describe(cause: BaseException) -> str:
    """Return the first line of an exception's message."""
    text = getattr(cause, "strerror", None) or str(cause).strip() or type(cause).__name__
    return str(text).splitlines()[0]


def without_password(uri: str) -> str:
    """Return a URI without user and password."""
    user, _, host = urlsplit(uri).netloc.rpartition("@")
    return uri.replace(f"{user}@{host}", host, 1) if user else uri


@dataclass
class Untracked:
    """The file of one run for what MLflow did not take.

    Attributes:
        store: MLflow's tracking store, as it is shown.
        path: A JSON Lines file, which exists once there is something in it. Artifacts are copied
            to the folder of its name.
        retry_at: When MLflow is tried again, in seconds of ``time.monotonic``.
        reason: Why MLflow did not take something the last time.
        run_id: MLflow's run.
        file: The SQLite file, if the store is one.
    """

    store: str
    path: Path
    retry_at: float = 0.0
    reason: str = ""
    run_id: str = ""
    file: Path | None = None
    _is_reported: bool = False
    _is_loss_reported: bool = False

    @property
    def artifacts(self) -> Path:
        """The folder of artifacts."""
        return self.path.with_suffix("")

    @property
    def is_waiting(self) -> bool:
        """Whether MLflow is not tried at present."""
        return time.monotonic() < self.retry_at

    @property
    def is_given_up(self) -> bool:
        """Whether MLflow is not tried again."""
        return self.retry_at == math.inf

    def note(self, error: Exception, *, is_of_one_request: bool = False) -> None:
        """Keep the reason; wait with the next try if the store itself is at fault."""
        is_gone = self.file is not None and not self.file.exists()
        self.reason = "the file is gone" if is_gone else describe(first_cause(error))
        if not is_of_one_request and getattr(error, "error_code", None) not in REFUSALS:
            self.retry_at = max(self.retry_at, time.monotonic() + RETRY_SECONDS)

    def give_up(self, reason: str | None = None) -> None:
        """Stop trying MLflow: the store is missing, or does not know the run."""
        self.reason = reason or self.reason
        self.retry_at = math.inf

    def write(self, records: Iterable[dict[str, Any]]) -> None:
        """Append records; log a warning the first time."""
        lines = "".join(f"{dump(one)}\n" for one in records)
        try:
            self._begin()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(lines)
        except OSError as error:
            self._report_loss(error)

    def keep_artifact(self, method: str, source: str, artifact_path: str | None) -> None:
        """Copy a file or folder as ``method`` of an artifact repository does, and note it."""
        try:
            self._begin()
            getattr(LocalArtifactRepository(str(self.artifacts)), method)(source, artifact_path)
        except OSError as error:
            self._report_loss(error)
        name = Path(source).name if method == "log_artifact" else ""
        self.write([{"artifact": Path(artifact_path or "", name).as_posix()}])

    def _begin(self) -> None:
        if self._is_reported:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = self.path.open("x", encoding="utf-8")
        except FileExistsError:  # another process of this run has begun and reported it
            self._is_reported = True
            return
        with file:
            header = {"run_id": self.run_id, "store": self.store, "reason": self.reason}
            file.write(f"{dump(header)}\n")
        self._is_reported = True
        self._warn(f"is written to {shortened(self.path)}")

    def _report_loss(self, error: OSError) -> None:
        if not self._is_loss_reported:
            self._is_loss_reported = self._is_reported = True
            self._warn(f"is lost: {error.strerror}: {shortened(self.path)}")

    def _warn(self, fate: str) -> None:
        logger.warning(
            "MLflow failed, the run goes on. %s: %s. What is not tracked %s",
            self.store,
            self.reason,
            fate,
        )


def read_status(path: Path, run_id: str) -> str | None:
    """Return the status with which a run ended, if the file at ``path`` holds it."""
    for line in reversed(path.read_text("utf-8").splitlines()):
        if '"status"' in line and (record := json.loads(line)).get("run_id") == run_id:
            return str(record["status"])
    return None
