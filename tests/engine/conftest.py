"""Shared by the engine's tests."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ja_instruct.prompts import PromptParameters


@pytest.fixture(scope="session")
def texts(read_parameters: Callable[[str], dict[str, Any]]) -> PromptParameters:
    """Return the texts of the recipe's prompts."""
    return PromptParameters(**read_parameters("base")["prompts"])


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
