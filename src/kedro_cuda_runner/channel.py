"""What the runner's process and a node's say to each other, over one socket.

The node's process asks and tells; the runner answers. Every message is a pickled tuple of a kind
and its content:

- ``hello`` (rank, process id): answered with the ``Task``
- ``hook`` (name, arguments): fire a hook over there; answered with what the hooks returned
- ``load`` (dataset), ``save`` (dataset, data), ``confirm`` (dataset): for datasets that stay with
  the runner
- ``replaced_inputs``: what hooks have put in place of inputs, for the other ranks of a node that
  several processes run
- ``saving`` (dataset), ``saved`` (dataset, whether the runner did), ``log`` (record), ``finished``
  (rank, peak bytes, ``Failure`` or None): told, not answered

An answer is a tuple of True and the result, or of False and a packed exception.
"""

from __future__ import annotations

import pickle
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kedro_cuda_runner.transfer import dumps

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from kedro_cuda_runner.tracking import Tracking


@dataclass(frozen=True)
class Task:
    """What a node's process is to do, in types that need no import.

    Attributes:
        work: The node, its datasets and their validators, pickled.
        hooks: The hooks that somebody listens to, each with the arguments that are read; None
            where the run has no hooks.
        log_levels: Level by logger; the root logger's name is empty.
        tracking: The MLflow run to continue.
        is_async: Whether to load and save in threads.
        run_id: Kedro's id of the run.
    """

    work: bytes
    hooks: dict[str, frozenset[str]] | None
    log_levels: dict[str, int]
    tracking: Tracking | None
    is_async: bool
    run_id: str | None


@dataclass(frozen=True)
class Failure:
    """An exception that ended a node.

    Attributes:
        type_name: Its class.
        message: Its text.
        traceback: With it, as Python prints it.
        out_of_memory: Whether the device's memory ran out.
        is_usage_error: Whether it explains itself, so that nobody needs the traceback.
    """

    type_name: str
    message: str
    traceback: str
    out_of_memory: bool
    is_usage_error: bool


class RunnerGoneError(Exception):
    """The runner's process has ended."""


class Channel:
    """A node's end of the socket; threads take turns."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._turn = threading.RLock()

    def tell(self, kind: str, *content: Any) -> None:
        """Send a message that is not answered."""
        message = dumps((kind, *content))
        with self._turn:
            self._send(message)

    def ask(self, kind: str, *content: Any) -> Any:
        """Send a message and return its answer.

        Raises:
            Exception: What a hook, a load or a save raised over there.
            RunnerGoneError: There is nobody to answer.
        """
        message = dumps((kind, *content))
        with self._turn:
            self._send(message)
            try:
                answer = self._connection.recv_bytes()
            except (EOFError, OSError) as error:
                raise RunnerGoneError from error
        succeeded, result = pickle.loads(answer)  # noqa: S301 - from the runner
        if not succeeded:
            raise pickle.loads(result)  # noqa: S301 - an exception that the runner has packed
        return result

    def _send(self, message: bytes) -> None:
        try:
            self._connection.send_bytes(message)
        except OSError as error:
            raise RunnerGoneError from error
