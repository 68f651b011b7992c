"""What it takes to start a node's process."""

from __future__ import annotations

import os
import site
import socket
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro_cuda_runner.transfer import NotTransferableError, dumps

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol
    from kedro.pipeline.node import Node

# of sockaddr_un, without the final zero
SOCKET_PATH_BYTES = 107
WORKER = "kedro_cuda_runner.worker"


def make_socket_folder() -> Path:
    """Return a new folder, of this user alone, in which a socket can be: its path is short."""
    folder = Path(tempfile.mkdtemp(prefix="cuda-runner-"))
    if len(os.fsencode(folder / "socket")) > SOCKET_PATH_BYTES:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="cuda-runner-", dir="/tmp"))
    return folder


def pack_work(node: Node, catalog: CatalogProtocol[Any, Any]) -> bytes:
    """Pickle a node and those of its datasets that can work in another process.

    Raises:
        NotTransferableError: The node's function cannot be found by its name.
    """
    names = dict.fromkeys((*node.inputs, *node.outputs, *node.confirms))
    datasets, staying = {}, []
    for name in names:
        dataset: Any = catalog.get(name)
        is_single = getattr(dataset, "_SINGLE_PROCESS", False) or getattr(
            dataset, "_EPHEMERAL", False
        )
        try:
            if is_single:
                raise NotTransferableError
            dumps(dataset)
        except NotTransferableError:
            staying.append(name)
        else:
            datasets[name] = dataset
    specs = getattr(catalog, "validator_specs", {})
    validation = (
        {name: specs[name] for name in datasets if name in specs},
        getattr(catalog, "validation_enabled", True),
    )
    return dumps((node, datasets, validation, tuple(staying)))


def worker_command(device_count: int, address: str) -> list[str]:
    """Return what starts a node's process, or with several devices one for each.

    Args:
        device_count: The node's devices.
        address: The path of the runner's socket.
    """
    worker = ["-m", WORKER, address]
    if device_count < 2:
        return [sys.executable, *worker]
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"),
        *("--num_processes", str(device_count), "--num_machines", "1", "--machine_rank", "0"),
        # what a person's own configuration file might say otherwise; the node's library decides
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--main_process_port", str(_free_port())),
        *worker,
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def import_paths() -> list[str]:
    """Return what this process imports from and a fresh interpreter would not."""
    own = {*site.getsitepackages(), *sysconfig.get_paths().values()}
    stdlib = sysconfig.get_paths()["stdlib"]
    return [path for path in sys.path if path and path not in own and not path.startswith(stdlib)]
