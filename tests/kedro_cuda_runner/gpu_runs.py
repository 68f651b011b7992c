"""Small runs under ``CudaRunner``, and what their tests have in common."""

from __future__ import annotations

import ctypes
import re
import time

import psutil
import pytest
from kedro.framework.hooks import hook_impl
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import AbstractDataset, DataCatalog, MemoryDataset
from kedro.pipeline import node, pipeline

from kedro_cuda_runner import CudaRunner


class Errors:
    """A hook that collects the errors of nodes."""

    def __init__(self):
        self.seen = []

    @hook_impl
    def on_node_error(self, error, node):
        self.seen.append((node.name, error))


def gpu(function, inputs=None, outputs=None, name=None, **arguments):
    """Return a node with the tag ``gpu``, by default named as its function."""
    return node(function, inputs, outputs, name=name or function.__name__, tags="gpu", **arguments)


def catalog_of(data):
    """Return a catalog of datasets and of plain values."""
    return DataCatalog(
        {
            name: value if isinstance(value, AbstractDataset) else MemoryDataset(value)
            for name, value in data.items()
        }
    )


def manager_of(*hooks):
    """Return Kedro's manager with these hooks and no plugin's."""
    manager = _create_hook_manager()
    for one in hooks:
        manager.register(one)
    return manager


def run(nodes, data, layer, hooks=(), *, is_async=False, **arguments):
    """Run nodes on a catalog or on a mapping; return the outputs that no node takes, by name."""
    catalog = data if isinstance(data, DataCatalog) else catalog_of(data)
    runner = CudaRunner(is_async=is_async, layer=layer)
    outputs = runner.run(pipeline(nodes), catalog, manager_of(*hooks), **arguments)
    return {name: dataset.load() for name, dataset in outputs.items()}


def wait_until(condition, seconds=10.0):
    """Return whether the condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def why_not_loaded(library):
    """Return the loader's error for a library; skip the test on a machine that has it."""
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return str(error)
    return pytest.skip(f"this machine has {library}")


def screen_lines(text):
    """Return the lines that a terminal of any width shows."""
    lines = [""]
    column = 0
    for piece in re.findall(r"\x1b\[2K|[\r\n]|[^\r\n\x1b]+", text):
        if piece == "\x1b[2K":
            lines[-1] = ""
        elif piece == "\r":
            column = 0
        elif piece == "\n":
            lines.append("")
            column = 0
        else:
            lines[-1] = lines[-1][:column].ljust(column) + piece + lines[-1][column + len(piece) :]
            column += len(piece)
    return lines
