"""The command that starts a node's process."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
import tempfile
from pathlib import Path

# of sockaddr_un, without the final zero
SOCKET_PATH_BYTES = 107
WORKER = "kedro_cuda_runner.worker"


def make_socket_folder() -> Path:
    """Create a folder, private to this user, whose path is short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="cuda-runner-"))
    if len(os.fsencode(folder / "socket")) > SOCKET_PATH_BYTES:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="cuda-runner-", dir="/tmp"))
    return folder


def worker_command(device_count: int, address: str) -> list[str]:
    """Return the command for a node's process, or with several devices for one process each."""
    worker = ["-m", WORKER, address]
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


def import_paths() -> list[str]:
    """Return the entries of ``sys.path`` that a new interpreter would lack."""
    own = {*site.getsitepackages(), *sysconfig.get_paths().values()}
    stdlib = sysconfig.get_paths()["stdlib"]
    return [path for path in sys.path if path and path not in own and not path.startswith(stdlib)]
