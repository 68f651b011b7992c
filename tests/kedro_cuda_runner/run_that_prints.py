"""A run whose nodes print: ``python run_that_prints.py FOLDER WAY``; see ``test_terminal.py``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import gpu_nodes
from fake_devices import FakeDevices
from gpu_runs import gpu, run

NODES = {
    "speak": [gpu(gpu_nodes.speak, "x", "y")],
    "streams": [gpu(gpu_nodes.two_streams, "x", "y")],
    "two": [
        gpu(gpu_nodes.bar_and_words, ["ham", "folder"], "y", "ham"),
        gpu(gpu_nodes.bar_and_words, ["eggs", "folder"], "z", "eggs"),
    ],
}

if __name__ == "__main__":
    root = logging.getLogger()
    root.handlers[:] = [logging.StreamHandler()]
    logging.getLogger("gpu_nodes").setLevel(logging.INFO)
    data = {"x": 1, "ham": "ham", "eggs": "eggs", "folder": sys.argv[1]}
    run(NODES[sys.argv[2]], data, FakeDevices(Path(sys.argv[1]) / "devices"))
