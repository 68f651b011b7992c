"""Counts and times a model's calls during generation, without changing the engine.

A call with several tokens of a sequence is part of a prefill, one with a single token of each a
step. A step that is a CUDA graph calls no model: the replays of graphs are counted.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from typing import TYPE_CHECKING, Any, Self
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch


class ForwardClock(contextlib.ExitStack):
    """Watches, as a context, all models of a directory's class.

    Attributes:
        first_call: The time of the first call by ``time.perf_counter``.
        steps: Number of steps so far, including those that warm up for a graph.
        batch_sizes: The different numbers of sequences of the steps, in order.
    """

    def __init__(self, directory: Path) -> None:
        """Read the class from a directory's configuration."""
        import transformers

        super().__init__()
        config = json.loads((directory / "config.json").read_text("utf-8"))
        self._class: Any = getattr(transformers, config["architectures"][0])
        self._prefills: list[tuple[Any, Any]] = []
        self.first_call: float | None = None
        self.steps = 0
        self.batch_sizes: list[int] = []

    def __enter__(self) -> Self:
        """Replace the model's ``forward`` and the graphs' ``replay``."""
        import torch

        clock, forward, replay = self, self._class.forward, torch.cuda.CUDAGraph.replay

        # transformers reads the signature
        @functools.wraps(forward)
        def watched(model: Any, *args: Any, **kwargs: Any) -> Any:
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            return clock._call(ids, functools.partial(forward, model, *args, **kwargs))

        def counted(graph: Any) -> None:
            clock.steps += 1
            replay(graph)

        self.enter_context(mock.patch.object(self._class, "forward", watched))
        self.enter_context(mock.patch.object(torch.cuda.CUDAGraph, "replay", counted))
        return super().__enter__()

    def _call(self, ids: torch.Tensor, forward: Callable[[], Any]) -> Any:
        import torch

        if self.first_call is None:
            self.first_call = time.perf_counter()
        if ids.shape[1] == 1:
            if ids.shape[0] not in self.batch_sizes:
                self.batch_sizes.append(ids.shape[0])
            self.steps += not (ids.is_cuda and torch.cuda.is_current_stream_capturing())
            return forward()
        before = self._now(ids)
        result = forward()
        self._prefills.append((before, self._now(ids)))
        return result

    def _now(self, ids: torch.Tensor) -> Any:
        """Return the time on the device, which lags behind the host."""
        import torch

        if not ids.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def prefill_seconds(self) -> float:
        """Return the seconds of all prefills, the model's calls alone."""
        import torch

        if self._prefills and not isinstance(self._prefills[0][0], float):
            torch.cuda.synchronize()
            return sum(before.elapsed_time(after) for before, after in self._prefills) / 1e3
        return float(sum(after - before for before, after in self._prefills))
