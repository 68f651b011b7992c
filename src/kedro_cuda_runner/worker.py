"""A node's own process: ``python -m kedro_cuda_runner.worker ADDRESS``."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import inspect
import logging
import os
import pickle
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
# arguments of hooks that are as small as a name
AS_THEY_ARE = ("dataset_name", "is_async", "run_id")
OUT_OF_MEMORY_TEXTS = ("CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of mem")


def main(address: str) -> None:
    """Fetch a task from the runner at ``address``, do it, and tell how it went."""
    faulthandler.enable()
    signal.signal(signal.SIGTERM, _end_on_signal)
    rank = int(os.environ.get("RANK", "0"))
    channel = Channel(_connect(address))
    _watch_runner(_connect(address))
    try:
        task: Task = channel.ask("hello", rank, os.getpid())
        # of its own: a log record must not read the answer to another question
        _send_logs(Channel(_connect(address)), task.log_levels)
        _work(channel, task, rank)
    except RunnerGoneError:
        sys.exit(1)  # the watch takes the rest of this group of processes along
    _leave()


def _leave() -> None:
    """End the process as the interpreter does, but for taking its modules apart.

    That takes PyTorch, transformers and TRL 1.3 s (2 cores of an Intel Xeon), in which the next
    node waits for the device, and gives CUDA's libraries a last chance to crash.
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
    # a process that the node starts must not hold the socket open
    os.set_inheritable(connection.fileno(), False)
    return connection


def _end_on_signal(number: int, _: Any) -> None:
    # unwinds the stack, so that whatever cleans up after itself does
    sys.exit(128 + number)


def _watch_runner(connection: Connection) -> None:
    """End this process and its own when the runner is gone, however it went."""

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
        if os.getpid() != self._process_id:  # forked by the node: the socket is not its own
            sys.stderr.write(f"{record.levelname} {record.getMessage()}\n")
            return
        # what was printed before belongs before
        sys.stdout.flush()
        sys.stderr.flush()
        # what is printed next belongs after it
        self._channel.ask("log", record)


def _send_logs(channel: Channel, levels: dict[str, int]) -> None:
    logging.disable()  # it tells which configuration it has found, as it did in the runner
    import kedro.framework.project  # noqa: F401 - sets up logging when it is imported

    logging.disable(logging.NOTSET)
    root = logging.getLogger()
    for name in list(logging.root.manager.loggerDict):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    root.handlers[:] = [_LogSender(channel)]
    for name, level in levels.items():
        logging.getLogger(name or None).setLevel(level)
    logging.captureWarnings(True)


def _work(channel: Channel, task: Task, rank: int) -> None:
    try:
        node, catalog = _unpack(channel, task, rank)
        if rank == 0:
            # the active run is a thread's own, and with is_async another one may be the first
            go_on = continued if task.is_async else continued_once_imported
            with go_on(task.tracking):
                _run_node(channel, task, node, catalog)
        else:
            _follow(channel, node, catalog)
    except RunnerGoneError:
        raise
    except Exception as error:  # everything a node may raise; the runner decides what to make of it
        channel.tell("finished", rank, _torch_peak_bytes(), _describe(error))
        sys.exit(1)
    channel.tell("finished", rank, _torch_peak_bytes(), None)


def _unpack(channel: Channel, task: Task, rank: int) -> tuple[Node, WorkerCatalog]:
    from kedro_cuda_runner.worker_catalog import WorkerCatalog

    node, datasets, validation, staying = pickle.loads(task.work)  # noqa: S301 - from the runner
    return node, WorkerCatalog.of(channel, datasets, validation, staying, saves=rank == 0)


def _run_node(channel: Channel, task: Task, node: Node, catalog: WorkerCatalog) -> None:
    from kedro.runner.task import Task as KedroTask

    KedroTask(
        node=node,
        catalog=catalog,
        is_async=task.is_async,
        hook_manager=RemoteHooks(channel, task.hooks, catalog.staying),  # type: ignore[arg-type]
        run_id=task.run_id,
    ).execute()


def _follow(channel: Channel, node: Node, catalog: WorkerCatalog) -> None:
    """Run the node beside rank 0, which saves for all and alone is seen by the hooks."""
    inputs = {name: catalog.load(name) for name in node.inputs}
    inputs |= channel.ask("replaced_inputs")
    outputs = node.run(inputs)
    if inspect.isgeneratorfunction(node.func):
        for stream in outputs.values():
            for _ in stream:
                pass


class RemoteHooks:
    """Stands for the runner's hooks: ``hooks.hook.before_node_run(...)`` fires them over there.

    Only what somebody reads is sent, and an input once; the runner remembers it.
    """

    def __init__(
        self,
        channel: Channel,
        listened_to: dict[str, frozenset[str]] | None,
        known: Collection[str],
    ) -> None:
        """Take the hooks that have listeners, and the inputs that the runner has itself."""
        self._channel = channel
        self._listened_to = listened_to
        self._known = set(known)

    @property
    def hook(self) -> RemoteHooks:
        """Return what has the hooks as attributes, as pluggy's manager does."""
        return self

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return what fires a hook."""

        def fire(**arguments: Any) -> Any:
            if self._listened_to is None:
                return None
            if name not in self._listened_to:
                return []
            return self._channel.ask("hook", name, self._pack(name, arguments))

        return fire

    def _pack(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        read = (self._listened_to or {})[name]
        packed: dict[str, Any] = {key: None for key in arguments if key not in ("node", "catalog")}
        packed |= {key: arguments[key] for key in AS_THEY_ARE if key in arguments}
        if "error" in packed:
            packed["error"] = pack_error(arguments["error"])
        if "data" in read and name == "after_dataset_loaded":
            packed["data"] = self._pack_input(arguments["dataset_name"], arguments["data"])
        elif "data" in read:
            packed["data"] = pack_for_hooks(arguments["data"])
        if "inputs" in read:
            inputs = arguments["inputs"]
            packed["inputs"] = {key: self._pack_input(key, inputs[key]) for key in inputs}
        if "outputs" in read:
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
        or any(wanted in text for wanted in OUT_OF_MEMORY_TEXTS),
        is_usage_error=isinstance(error, click.ClickException | NotTransferableError),
    )


def _traceback_from_the_node(error: Exception) -> str:
    """Return the traceback without the frames of Kedro and the runner that lead to the node."""
    import kedro

    leading = (str(Path(kedro.__file__).parent), str(Path(__file__).parent))
    shown = traceback.TracebackException.from_exception(error)
    frames = list(dropwhile(lambda frame: frame.filename.startswith(leading), shown.stack))
    if frames:  # none where Kedro itself failed
        shown.stack = traceback.StackSummary.from_list(frames)
    return "".join(shown.format())


def _torch_peak_bytes() -> int | None:
    """Return what PyTorch's allocator held at most on one device, if it was used."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    devices = range(torch.cuda.device_count())
    return max(int(torch.cuda.max_memory_reserved(device)) for device in devices)


if __name__ == "__main__":
    main(sys.argv[1])
