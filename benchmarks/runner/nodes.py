"""The nodes of ``bench_cuda_runner.py``, where another process can import them."""

from __future__ import annotations

import importlib
from typing import Any


def multiply(libraries: str, resources: dict[str, Any], _: Any) -> float:
    """Import the libraries and use the device for a moment."""
    for library in libraries.split(","):
        importlib.import_module(library)
    import torch

    device = "cuda" if resources["gpu"]["devices"] else "cpu"
    matrix = torch.ones(1024, 1024, device=device)
    return float((matrix @ matrix).sum())


def add_one(number: int) -> int:
    """Do next to nothing."""
    return number + 1
