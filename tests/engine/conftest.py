"""Shared by the engine's tests."""

from collections.abc import Callable
from typing import Any

import pytest
import torch


@pytest.fixture
def replayed() -> Callable[[Callable[[], Any]], Any]:
    """Return a function that captures a call as a CUDA graph and returns what a replay computes."""

    def replay(call: Callable[[], Any]) -> Any:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = call()
        graph.replay()
        return output

    return replay
