"""The messages between a node's process and the runner, over one socket.

The node's process sends; the runner answers. Each message is a pickled tuple of its kind and its
content. The runner answers these:

- ``hello``: with the ``Task``
- ``hook`` (name, arguments): with the results of the hook, which it calls
- ``load`` (dataset), ``save`` (dataset, data), ``confirm`` (dataset): for datasets that stay in the
  runner's process
- ``replaced_inputs``: with the inputs that hooks have replaced, for the other ranks of a node that
  runs in several processes
- ``log`` (record): once it is handled

It does not answer ``saving`` (dataset), ``saved`` (dataset, whether the runner saved it) and
``finished`` (rank, peak bytes, ``Failure`` or None). An answer is a tuple of True and the result,
or of False and a pickled exception.
"""

from __future__ import annotations

import pickle
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from kedro_cuda_runner.tracking import Tracking
from kedro_cuda_runner.transfer import dumps


@dataclass(frozen=True)
class Task:
    """The work of a node's process, in types that can be unpickled without imports.

    Attributes:
        work: The node, its datasets and their validators, pickled.
        hooks: The implemented hooks with the arguments that their implementations take.
        log_levels: Level of each logger; the root logger's name is empty.
    """

    work: bytes
    hooks: dict[str, frozenset[str]]
    log_levels: dict[str, int]
    tracking: Tracking | None
    is_async: bool
    run_id: str | None


@dataclass(frozen=True)
class Failure:
    """The exception that ended a node; the message of a usage error needs no traceback."""

    type_name: str
    message: str
    traceback: str
    out_of_memory: bool
    is_usage_error: bool


class RunnerGoneError(Exception):
    """The runner's process has ended."""


class Channel:
    """The node's end of the socket; thread-safe. Raises ``RunnerGoneError`` at the runner's end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.RLock()

    def send(self, kind: str, *content: Any) -> None:
        """Send a message that is not answered."""
        message = dumps((kind, *content))
        with self._lock:
            try:
                self._connection.send_bytes(message)
            except OSError as error:
                raise RunnerGoneError from error

    def request(self, kind: str, *content: Any) -> Any:
        """Send a message and return its answer.

        Raises:
            Exception: Raised in the runner by a hook or a dataset.
        """
        with self._lock:
            self.send(kind, *content)
            try:
                answer = self._connection.recv_bytes()
            except (EOFError, OSError) as error:
                raise RunnerGoneError from error
        succeeded, result = pickle.loads(answer)  # noqa: S301 - from the runner
        if not succeeded:
            raise pickle.loads(result)  # noqa: S301 - an exception that the runner has pickled
        return result
