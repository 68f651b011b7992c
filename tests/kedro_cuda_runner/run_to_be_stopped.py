"""A run that hangs: ``python run_to_be_stopped.py FOLDER WAY``; see ``test_stopping.py``."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import click
import dying_datasets
import gpu_nodes
from fake_devices import FakeDevices
from gpu_runs import gpu, run
from kedro.io import MemoryDataset
from kedro.pipeline import node

from kedro_cuda_runner import scheduler


def hang_here(folder):
    (Path(folder) / "here").touch()
    time.sleep(300)


def interrupt_once_more(*_):
    """Replace ``resume_command`` and press Ctrl-C again meanwhile."""
    os.kill(os.getpid(), signal.SIGINT)
    return "kedro run"


@click.command()
@click.argument("folder", type=Path)
@click.argument("way")
def main(folder: Path, way: str) -> None:
    kind = dying_datasets.TextThatHangs
    nodes = [gpu(gpu_nodes.double, "text", "twice", "train")]
    if way in ("stubborn", "stubborn for long"):
        kind = dying_datasets.StubbornText
        scheduler.STOP_SECONDS = 1.0 if way == "stubborn" else 300.0
    elif way == "here":
        nodes.append(node(hang_here, "folder", "nothing", name="evaluate"))
    elif way == "interrupted again":
        scheduler.resume_command = interrupt_once_more
    data = {
        "text": MemoryDataset("words "),
        "folder": MemoryDataset(str(folder)),
        "twice": kind(filepath=str(folder / "twice.txt")),
    }
    if way == "alone":
        nodes = [node(hang_here, "folder", "nothing", name="evaluate")]
    run(nodes, data, FakeDevices(folder / "devices"))


if __name__ == "__main__":
    if sys.argv[2] == "command":
        main()
    else:
        main.callback(Path(sys.argv[1]), sys.argv[2])
