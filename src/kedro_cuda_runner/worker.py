"""The process of a node: ``python -m kedro_cuda_runner.worker ADDRESS``."""

from __future__ import annotations

import atexit
import contextlib
import errno
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
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import TYPE_CHECKING

from kedro_cuda_runner.channel import Channel, Failure, RunnerGoneError, Task
from kedro_cuda_runner.hooks import RemoteHooks
from kedro_cuda_runner.tracking import continued, continued_once_imported
from kedro_cuda_runner.transfer import NotTransferableError, dumps

if TYPE_CHECKING:
    from kedro.pipeline.node import Node

    from kedro_cuda_runner.worker_catalog import WorkerCatalog

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
ORPHAN_GRACE_SECONDS = 10
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
        task: Task = channel.request("hello")
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
    # as at the interpreter's end: joined alone, the idle threads of an executor never end
    threading._shutdown()  # type: ignore[attr-defined]
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
    from kedro.runner.task import Task as KedroTask

    from kedro_cuda_runner.worker_catalog import unpack_work

    try:
        node, catalog = unpack_work(task.work, channel, saves=rank == 0)
        if rank == 0:
            # MLflow's active run belongs to a thread; with is_async another thread may log first
            continue_run = continued if task.is_async else continued_once_imported
            with continue_run(task.tracking):
                KedroTask(
                    node=node,
                    catalog=catalog,
                    is_async=task.is_async,
                    hook_manager=RemoteHooks(channel, task.hooks, catalog.staying),  # type: ignore[arg-type]
                    run_id=task.run_id,
                ).execute()
        else:
            _run_beside_rank_0(channel, node, catalog)
    except RunnerGoneError:
        raise
    except Exception as error:  # anything a node may raise; the runner handles it
        channel.send("finished", rank, _torch_peak_bytes(), _describe(error))
        sys.exit(1)
    channel.send("finished", rank, _torch_peak_bytes(), None)


def _run_beside_rank_0(channel: Channel, node: Node, catalog: WorkerCatalog) -> None:
    """Run the node without saving and without hooks, which rank 0 does for all."""
    inputs = {name: catalog.load(name) for name in node.inputs}
    inputs |= channel.request("replaced_inputs")
    outputs = node.run(inputs)
    if inspect.isgeneratorfunction(node.func):
        for stream in outputs.values():
            for _ in stream:
                pass


def _describe(error: Exception) -> Failure:
    text = str(error)
    names = {kind.__name__ for kind in type(error).__mro__}
    return Failure(
        type_name=type(error).__name__,
        message=text,
        traceback=_traceback_from_the_node(error),
        out_of_memory="OutOfMemoryError" in names
        or any(one in text for one in OUT_OF_MEMORY_TEXTS),
        is_usage_error=_is_usage_error(error),
    )


def _is_usage_error(error: BaseException) -> bool:
    """Return whether the message suffices: Kedro's catalog may have wrapped the error."""
    import click

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, click.ClickException | NotTransferableError):
            return True
        if isinstance(cause, OSError) and cause.errno in DISK_ERRORS:
            return True
        cause = cause.__cause__
    return False


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
