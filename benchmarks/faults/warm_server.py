"""Forks runs from a process that has imported everything: ``python warm_server.py SOCKET``.

Starting a run takes ten seconds of imports and a second of work. Each request is a JSON message
with the descriptors of standard output and error: a run's ``kedro`` command, or the process of a
node. The server answers with the process id and, once the process has ended, with its exit status.
It has no threads of its own, so that a fork has all that it needs.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.faults import aimed, fake_gpus

SOCKET = "JA_FAULTS_SERVER"
# the project's settings come first: they set what libraries read when they are imported
MODULES = (
    "ja_instruct.settings",
    "ja_instruct.pipeline_registry",
    "ja_instruct.datasets",
    "kedro.framework.cli.cli",
    "kedro_cuda_runner.cuda_runner",
    "kedro_cuda_runner.worker",
    "mlflow.store.tracking.sqlalchemy_store",
    *("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets"),
    *("plotly", "colbert", "ragatouille", "bm25s", "rensa", "pycld2", "arro3.io"),
    "kedro_viz.integrations.kedro.hooks",
)
# what transformers, trl and peft import when it is first used
LAZY = {
    "trl": ("SFTTrainer", "SFTConfig"),
    "transformers": ("Trainer", "Gemma2ForCausalLM", "GemmaTokenizer", "AutoModelForCausalLM"),
    "peft": ("LoraConfig", "PeftModel"),
}
MESSAGE_BYTES = 1 << 20
# <linux/prctl.h>
PR_SET_PDEATHSIG = 1


class Process:
    """A process that the server has forked, with the interface of ``subprocess.Popen``."""

    def __init__(
        self,
        server: str,
        argv: Sequence[str],
        outputs: Sequence[int],
        cwd: str,
        env: dict[str, str],
    ) -> None:
        self.returncode: int | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(server)
        request = json.dumps({"argv": list(argv), "cwd": cwd, "env": env}).encode()
        socket.send_fds(self._socket, [request], outputs)
        self.pid = int(self._socket.recv(MESSAGE_BYTES))

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs."""
        return self._receive(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end.

        Raises:
            subprocess.TimeoutExpired: It has not ended in time.
        """
        status = self._receive(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("a warm process", timeout or 0.0)
        return status

    def _receive(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._socket.settimeout(timeout)
            with contextlib.suppress(TimeoutError, BlockingIOError):
                self.returncode = int(self._socket.recv(MESSAGE_BYTES))
                self._socket.close()
        return self.returncode


def start_worker(command: Sequence[str], **arguments: Any) -> Any:
    """Take the place of ``subprocess.Popen`` in the runner."""
    server = os.environ[SOCKET]
    if list(command[1:3]) != ["-m", "kedro_cuda_runner.worker"]:
        return subprocess.Popen(command, **arguments)
    outputs = [arguments["stdout"], arguments["stderr"]]
    return Process(server, ["worker", *command[3:]], outputs, str(Path.cwd()), arguments["env"])


def become(argv: list[str], cwd: str, env: dict[str, str], outputs: list[int]) -> None:
    """Turn this fork into a run or into the process of a node; does not return."""
    os.setsid()
    for target, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, outputs[0]), (2, outputs[1])):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    status: Any = 1
    try:
        fake_gpus.install()
        aimed.install()
        status = _run(argv)
    except SystemExit as end:
        status = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    # what the interpreter does at its end: executors are shut down, threads joined
    vars(threading)["_shutdown"]()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


def _run(argv: list[str]) -> int:
    sys.argv = argv
    if argv[0] == "worker":
        from kedro_cuda_runner import worker

        worker.main(argv[1])
        return 0
    from kedro.framework.cli.cli import main

    from kedro_cuda_runner import node_process

    warm = {**vars(subprocess), "Popen": start_worker}
    vars(node_process)["subprocess"] = types.SimpleNamespace(**warm)
    main()
    return 0


class Server:
    """Forks what clients ask for, and tells them how it ended."""

    def __init__(self, path: str) -> None:
        """Listen at a socket."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(f"{path}.new")
        self._listener.listen(64)
        # clients connect as soon as it exists
        Path(f"{path}.new").rename(path)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._clients: dict[int, tuple[int, socket.socket]] = {}

    def serve(self) -> None:
        """Answer requests until this process is ended."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._fork(self._listener.accept()[0])
                else:
                    self._report_end(key.fd)

    def _fork(self, client: socket.socket) -> None:
        message, outputs, _, _ = socket.recv_fds(client, MESSAGE_BYTES, 2)
        if not message:  # the client was killed
            client.close()
            return
        pid = os.fork()
        if pid == 0:
            client.close()
            self._close()
            become(**json.loads(message), outputs=outputs)
        for output in outputs:
            os.close(output)
        client.send(str(pid).encode())
        pidfd = os.pidfd_open(pid)
        self._clients[pidfd] = (pid, client)
        self._selector.register(pidfd, selectors.EVENT_READ)

    def _close(self) -> None:
        self._selector.close()
        self._listener.close()
        for pidfd, (_, client) in self._clients.items():
            os.close(pidfd)
            client.close()

    def _report_end(self, pidfd: int) -> None:
        pid, client = self._clients.pop(pidfd)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(OSError):  # the client was killed
            client.send(str(status).encode())
        client.close()


def main() -> None:
    """Import everything, then serve."""
    # end with the harness, also if that is killed
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for name in MODULES:
        importlib.import_module(name)
    for name, attributes in LAZY.items():
        for attribute in attributes:
            getattr(sys.modules[name], attribute)
    Server(sys.argv[1]).serve()


if __name__ == "__main__":
    main()
