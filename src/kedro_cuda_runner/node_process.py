"""The process of a node, as the runner's process sees it.

``multiprocessing`` and Kedro's ``ParallelRunner`` do not fit: a node's process has to start without
what this process has imported, with other environment variables, as a group that can be killed,
and with its output readable while it runs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import site
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from kedro.io import CatalogProtocol
from kedro.pipeline.node import Node

from kedro_cuda_runner.channel import Failure, Task
from kedro_cuda_runner.devices import Device, DeviceLayer
from kedro_cuda_runner.failures import Ending, LastLines
from kedro_cuda_runner.hooks import SerialHooks
from kedro_cuda_runner.outputs import OutputWatch
from kedro_cuda_runner.terminal import Output, Terminal, open_outputs
from kedro_cuda_runner.tracking import Tracking
from kedro_cuda_runner.transfer import dumps, pack_error, unpack_for_hooks
from kedro_cuda_runner.worker_catalog import pack_work

if TYPE_CHECKING:
    from kedro_cuda_runner.supervisor import Supervisor

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
# for the clean-up of libraries after the node is done
EXIT_SECONDS = 30.0
# of sockaddr_un, without the final zero
SOCKET_PATH_BYTES = 107


@dataclass(frozen=True)
class RunContext:
    """What all nodes of a run share; ``running`` are those in their own processes now."""

    layer: DeviceLayer
    catalog: CatalogProtocol[Any, Any]
    hooks: SerialHooks
    run_id: str | None
    is_async: bool
    tracking: Tracking | None
    terminal: Terminal
    running: dict[Node, Supervisor] = field(default_factory=dict)


class NodeProcess:
    """Starts a node's process, answers its messages, prints its output and waits for its end.

    With several devices, accelerate starts one process for each.
    """

    def __init__(
        self, node: Node, devices: Sequence[Device], environment: dict[str, str], run: RunContext
    ) -> None:
        """Prepare a process, which is not started; ``environment`` selects the devices."""
        self._node = node
        self._devices = devices
        self._environment = environment
        self._run = run
        self._ending = Ending()
        self._lines = LastLines()
        self._watch = OutputWatch(node, run.catalog)
        self._process: subprocess.Popen[bytes] | None = None
        self._connections: list[Connection] = []
        self._waiting_for_inputs: list[Connection] = []
        self._replaced_inputs: dict[str, Any] | None = None
        self._finished_at: float | None = None
        self.is_stopping = False

    def run(self) -> Ending:
        """Run the node; blocks until its process has ended."""
        with (
            _socket_folder() as folder,
            socket.socket(socket.AF_UNIX) as listener,
            contextlib.ExitStack() as at_end,
        ):
            work = pack_work(self._node, self._run.catalog)
            listener.bind(f"{folder}/socket")
            listener.listen(16 + 2 * len(self._devices))
            outputs = list(dict.fromkeys(open_outputs(self._lines)))
            for output in outputs:
                at_end.callback(output.close)
            at_end.callback(self._end)
            process = self._start(f"{folder}/socket", outputs)
            self._serve(process, listener, outputs, work)
        self._ending.last_lines = list(self._lines)
        if not self._ending.done:
            self._ending.unfinished = self._watch.discard_unfinished()
        return self._ending

    def stop(self, *, kill: bool = False) -> None:
        """Terminate, or kill, the process and the processes that it has started."""
        self.is_stopping = True
        self._kill_group(signal.SIGKILL if kill else signal.SIGTERM)

    def pid(self) -> int | None:
        """Return the process id; None before the start."""
        return None if self._process is None else self._process.pid

    def _start(self, address: str, outputs: list[Output]) -> subprocess.Popen[bytes]:
        own = {"PYTHONPATH": os.pathsep.join(_import_paths())}
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, this package
            _command(len(self._devices), address),
            stdin=subprocess.DEVNULL,
            stdout=outputs[0].child_end,
            stderr=outputs[-1].child_end,
            env={**os.environ, **own, **self._environment},
            # Ctrl-C reaches only the runner, which then ends its processes in order
            start_new_session=True,
        )
        for output in outputs:
            os.close(output.child_end)
        if self.is_stopping:  # stop was called before the process existed
            self.stop()
        return self._process

    def _end(self) -> None:
        self._kill_group(signal.SIGKILL)  # processes that the node started and left
        for connection in self._connections:
            connection.close()

    def _kill_group(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def _serve(
        self,
        process: subprocess.Popen[bytes],
        listener: socket.socket,
        outputs: list[Output],
        work: bytes,
    ) -> None:
        reading = list(outputs)
        while True:
            # all have a file descriptor, on which wait polls
            sources: list[Any] = [listener, *self._connections, *reading]
            # polled first: then everything that the process sent before its end has arrived
            has_ended = process.poll() is not None
            ready = wait(sources, timeout=0 if has_ended else POLL_SECONDS)
            # output that preceded a message is printed before the message is handled
            reading = [output for output in reading if self._print(output)]
            if listener in ready:
                self._connections.append(Connection(listener.accept()[0].detach()))
            for connection in [c for c in self._connections if c in ready]:
                self._receive(connection, work)
            if has_ended and not any(isinstance(one, Connection) for one in ready):
                break
            self._kill_if_overdue()
        for output in reading:
            self._print(output)
        self._ending.exit_code = process.returncode

    def _kill_if_overdue(self) -> None:
        if self._finished_at is not None and time.monotonic() > self._finished_at + EXIT_SECONDS:
            logger.warning(
                "The process of '%s' did not end within %.0f s after its node; it was killed",
                self._node.name,
                EXIT_SECONDS,
            )
            self._finished_at = None
            self._kill_group(signal.SIGKILL)

    def _print(self, output: Output) -> bool:
        """Print what has arrived; return whether more may come."""
        text = output.read()
        if text:
            prefix = f"[{self._node.name}] " if len(self._run.running) > 1 else ""
            self._run.terminal.write(output, text, prefix)
        return text is not None

    def _receive(self, connection: Connection, work: bytes) -> None:
        try:
            kind, *content = pickle.loads(connection.recv_bytes())  # noqa: S301 - own process
        except (EOFError, OSError):
            connection.close()
            self._connections.remove(connection)
            return
        answered: dict[str, Callable[..., Any]] = {
            "hello": lambda: self._task(work),
            "hook": self._call_hook,
            "load": self._load,
            "save": lambda name, data: self._run.catalog.save(name, pickle.loads(data)),  # noqa: S301
            "confirm": self._run.catalog.confirm,
            # answered, so that later output is printed after it
            "log": self._log,
        }
        if kind in answered:
            self._answer(connection, lambda: answered[kind](*content))
        elif kind == "replaced_inputs":
            self._waiting_for_inputs.append(connection)
        elif kind in ("saving", "saved"):
            getattr(self._watch, kind)(*content)
        elif kind == "finished":
            self._finish(*content)
        replaced = self._replaced_inputs
        while replaced is not None and self._waiting_for_inputs:
            self._answer(self._waiting_for_inputs.pop(), lambda: replaced)

    def _answer(self, connection: Connection, act: Callable[[], Any]) -> None:
        try:
            answer = dumps((True, act()))
        except Exception as error:  # of a hook or dataset: the node's process raises it
            answer = dumps((False, pack_error(error)))
        with contextlib.suppress(OSError):  # the process has died, which _serve notices
            connection.send_bytes(answer)

    def _task(self, work: bytes) -> Task:
        loggers = logging.root.manager.loggerDict
        levels = {
            name: one.level for name, one in loggers.items() if isinstance(one, logging.Logger)
        }
        hooks = self._run.hooks.implemented()
        if "before_node_run" not in hooks:
            self._replaced_inputs = {}
        return Task(
            work=work,
            hooks=hooks,
            log_levels={**levels, "": logging.root.level},
            tracking=self._run.tracking,
            is_async=self._run.is_async,
            run_id=self._run.run_id,
        )

    def _call_hook(self, name: str, sent: dict[str, Any]) -> Any:
        inputs, arguments = self._ending.inputs, dict(sent)
        for key in ("data", "error"):
            if sent.get(key) is not None:
                arguments[key] = unpack_for_hooks(sent[key])
        if name == "after_dataset_loaded":
            if sent["data"] is not None:
                inputs[sent["dataset_name"]] = arguments["data"]
            arguments["data"] = inputs.get(sent["dataset_name"])
        if "inputs" in sent:
            new = {key: one for key, one in (sent["inputs"] or {}).items() if one is not None}
            inputs |= {key: unpack_for_hooks(one) for key, one in new.items()}
            arguments["inputs"] = dict(inputs)
        if sent.get("outputs") is not None:
            arguments["outputs"] = {k: unpack_for_hooks(v) for k, v in sent["outputs"].items()}
        results = self._run.hooks.call(
            name, node=self._node, catalog=self._run.catalog, **arguments
        )
        self._ending.reported_to_hooks |= name == "on_node_error"
        if name == "before_node_run":
            self._replaced_inputs = {}
            for result in results or []:
                if isinstance(result, dict):
                    self._replaced_inputs |= result
            inputs |= self._replaced_inputs
        return results

    def _load(self, name: str) -> Any:
        data = self._run.catalog.load(name)
        # hooks get what rank 0 was given, whichever rank loads it later
        self._ending.inputs.setdefault(name, data)
        return data

    def _log(self, record: logging.LogRecord) -> None:
        for line in f"{record.levelname} {record.getMessage()}".splitlines():
            self._lines.add_line(line)
        logging.getLogger(record.name).handle(record)

    def _finish(self, rank: int, peak_bytes: int | None, failure: Failure | None) -> None:
        self._finished_at = self._finished_at or time.monotonic()
        if peak_bytes is not None:
            self._ending.torch_peak_bytes = max(peak_bytes, self._ending.torch_peak_bytes or 0)
        if failure is None:
            self._ending.done = self._ending.done or rank == 0  # which saves for all
        elif self._ending.failure is None:
            self._ending.failure = failure


def _socket_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder, private to this user, whose path is short enough for a socket."""
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) + len("/cuda-runner-12345678/socket") > SOCKET_PATH_BYTES:
        parent = "/tmp"  # noqa: S108 - only the parent of a folder with a random name
    return tempfile.TemporaryDirectory(prefix="cuda-runner-", dir=parent)


def _command(device_count: int, address: str) -> list[str]:
    """Return the command for a node's process, or with several devices for one process each."""
    worker = ["-m", "kedro_cuda_runner.worker", address]
    if device_count < 2:
        return [sys.executable, *worker]
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"),
        *("--num_processes", str(device_count), "--num_machines", "1", "--machine_rank", "0"),
        # override the user's accelerate configuration: the node's own library decides
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--main_process_port", "0"),  # any free port
        *worker,
    ]


def _import_paths() -> list[str]:
    """Return the entries of ``sys.path`` that a new interpreter would lack."""
    own = {*site.getsitepackages(), *sysconfig.get_paths().values()}
    stdlib = sysconfig.get_paths()["stdlib"]
    return [path for path in sys.path if path and path not in own and not path.startswith(stdlib)]
