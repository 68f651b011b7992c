"""The process of a node: ``python -m kedro_cuda_runner.worker ADDRESS``."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import inspect
import logging
import os
import signal
import sys
import threading
import time
import traceback
from itertools import dropwhile
from logging.handlers import QueueHandler
from multiprocessing.connection import Client
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro_cuda_runner.channel import Channel, Failure, RunnerGoneError, Task
from kedro_cuda_runner.tracking import continued, continued_once_imported
from kedro_cuda_runner.transfer import NotTransferableError, dumps, pack_error, pack_for_hooks

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from multiprocessing.connection import Connection

    from kedro.pipeline.node import Node

    from kedro_cuda_runner.worker_catalog import WorkerCatalog

ORPHAN_GRACE_SECONDS = 10
# small arguments of hooks, sent unchanged
PLAIN_ARGUMENTS = ("dataset_name", "is_async", "run_id")
OUT_OF_MEMORY_TEXTS = ("CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of mem")


def main(address: str) -> None:
    """Request a task from the runner at ``address``, run it and report the result."""
    faulthandler.enable()
    # unwinds the stack, so that clean-up code runs
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    rank = int(os.environ.get("RANK", "0"))
    channel = Channel(_connect(address))
    _end_with_runner(_connect(address))
    try:
        task: Task = channel.request("hello", rank, os.getpid())
        # a separate connection: a log record must not read the answer to another request
        _send_logs(Channel(_connect(address)), task.log_levels)
        _run_task(channel, task, rank)
    except RunnerGoneError:
        sys.exit(1)  # _end_with_runner ends the rest of this process group
    _exit()


def _exit() -> None:
    """End the process without tearing down its modules.

    Teardown takes 1.3 s with PyTorch, transformers and TRL (2 cores of an Intel Xeon) while the
    next node waits for the device, and CUDA's libraries may crash in it.
    """
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _connect(address: str) -> Connection:
    connection = Client(address, family="AF_UNIX")
    # a process that the node starts must not keep the socket open
    os.set_inheritable(connection.fileno(), False)
    return connection


def _end_with_runner(connection: Connection) -> None:
    """End this process and its children once the runner has ended, for whatever reason."""

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            connection.recv_bytes()
        os.killpg(os.getpgrp(), signal.SIGTERM)
        time.sleep(ORPHAN_GRACE_SECONDS)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    connection.send_bytes(dumps(("watch",)))
    threading.Thread(target=watch, name="runner-watch", daemon=True).start()


class _LogSender(QueueHandler):
    """Sends log records to the runner, whose handlers print them."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)  # type: ignore[arg-type]
        self._channel = channel
        self._process_id = os.getpid()

    def enqueue(self, record: logging.LogRecord) -> None:
        if os.getpid() != self._process_id:  # a fork must not use its parent's socket
            sys.stderr.write(f"{record.levelname} {record.getMessage()}\n")
            return
        # earlier output is printed before the record
        sys.stdout.flush()
        sys.stderr.flush()
        # later output is printed after it
        self._channel.request("log", record)


def _send_logs(channel: Channel, levels: dict[str, int]) -> None:
    logging.disable()  # Kedro logs which configuration it finds, as it did in the runner
    import kedro.framework.project  # noqa: F401 - sets up logging when it is imported

    logging.disable(logging.NOTSET)
    for name in list(logging.root.manager.loggerDict):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger().handlers[:] = [_LogSender(channel)]
    for name, level in levels.items():
        logging.getLogger(name or None).setLevel(level)
    logging.captureWarnings(True)


def _run_task(channel: Channel, task: Task, rank: int) -> None:
    from kedro_cuda_runner.worker_catalog import unpack_work

    try:
        node, catalog = unpack_work(task.work, channel, saves=rank == 0)
        if rank == 0:
            # MLflow's active run belongs to a thread; with is_async another thread may log first
            continue_run = continued if task.is_async else continued_once_imported
            with continue_run(task.tracking):
                _run_node(channel, task, node, catalog)
        else:
            _run_beside_rank_0(channel, node, catalog)
    except RunnerGoneError:
        raise
    except Exception as error:  # anything a node may raise; the runner handles it
        channel.send("finished", rank, _torch_peak_bytes(), _describe(error))
        sys.exit(1)
    channel.send("finished", rank, _torch_peak_bytes(), None)


def _run_node(channel: Channel, task: Task, node: Node, catalog: WorkerCatalog) -> None:
    from kedro.runner.task import Task as KedroTask

    KedroTask(
        node=node,
        catalog=catalog,
        is_async=task.is_async,
        hook_manager=RemoteHooks(channel, task.hooks, catalog.staying),  # type: ignore[arg-type]
        run_id=task.run_id,
    ).execute()


def _run_beside_rank_0(channel: Channel, node: Node, catalog: WorkerCatalog) -> None:
    """Run the node without saving and without hooks, which rank 0 does for all."""
    inputs = {name: catalog.load(name) for name in node.inputs}
    inputs |= channel.request("replaced_inputs")
    outputs = node.run(inputs)
    if inspect.isgeneratorfunction(node.func):
        for stream in outputs.values():
            for _ in stream:
                pass


class RemoteHooks:
    """Replaces pluggy's manager: ``hooks.hook.before_node_run(...)`` calls the runner's hooks.

    It sends only the arguments that an implementation takes, and each input once.
    """

    def __init__(
        self,
        channel: Channel,
        implemented: dict[str, frozenset[str]] | None,
        known: Collection[str],
    ) -> None:
        """Take the implemented hooks with their arguments, and the inputs that the runner has."""
        self._channel = channel
        self._implemented = implemented
        self._known = set(known)

    @property
    def hook(self) -> RemoteHooks:
        """Return the object whose attributes are the hooks, as pluggy's manager does."""
        return self

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return a function that calls a hook."""

        def call(**arguments: Any) -> Any:
            if self._implemented is None:
                return None
            if name not in self._implemented:
                return []
            packed = self._pack(name, self._implemented[name], arguments)
            return self._channel.request("hook", name, packed)

        return call

    def _pack(self, name: str, taken: Collection[str], arguments: dict[str, Any]) -> dict[str, Any]:
        packed: dict[str, Any] = {
            key: value if key in PLAIN_ARGUMENTS else None
            for key, value in arguments.items()
            if key not in ("node", "catalog")
        }
        if "error" in packed:
            packed["error"] = pack_error(arguments["error"])
        if "data" in taken and name == "after_dataset_loaded":
            packed["data"] = self._pack_input(arguments["dataset_name"], arguments["data"])
        elif "data" in taken:
            packed["data"] = pack_for_hooks(arguments["data"])
        if "inputs" in taken:
            inputs = arguments["inputs"]
            packed["inputs"] = {key: self._pack_input(key, inputs[key]) for key in inputs}
        if "outputs" in taken:
            outputs = arguments["outputs"]
            packed["outputs"] = {key: pack_for_hooks(outputs[key]) for key in outputs}
        return packed

    def _pack_input(self, name: str, value: Any) -> Any:
        if name in self._known:
            return None
        self._known.add(name)
        return pack_for_hooks(value)


def _describe(error: Exception) -> Failure:
    import click

    text = str(error)
    names = {kind.__name__ for kind in type(error).__mro__}
    return Failure(
        type_name=type(error).__name__,
        message=text,
        traceback=_traceback_from_the_node(error),
        out_of_memory="OutOfMemoryError" in names
        or any(one in text for one in OUT_OF_MEMORY_TEXTS),
        is_usage_error=isinstance(error, click.ClickException | NotTransferableError),
    )


def _traceback_from_the_node(error: Exception) -> str:
    """Return the traceback without the frames of Kedro and the runner that precede the node."""
    import kedro

    leading = (str(Path(kedro.__file__).parent), str(Path(__file__).parent))
    shown = traceback.TracebackException.from_exception(error)
    frames = list(dropwhile(lambda frame: frame.filename.startswith(leading), shown.stack))
    if frames:  # none if Kedro itself failed
        shown.stack = traceback.StackSummary.from_list(frames)
    return "".join(shown.format())


def _torch_peak_bytes() -> int | None:
    """Return the peak of PyTorch's allocator on one device; None if it was not used."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    devices = range(torch.cuda.device_count())
    return max(int(torch.cuda.max_memory_reserved(device)) for device in devices)


if __name__ == "__main__":
    main(sys.argv[1])
