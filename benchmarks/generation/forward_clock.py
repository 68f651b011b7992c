"""What a model is called with while it generates, and what reading prompts takes, from outside.

A call with several tokens of a sequence reads a prompt; one with a single token of each is a step.
A step that is a CUDA graph calls no model: the graph's replay is counted.
"""

from __future__ import annotations

import functools
import json
import time
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch


class ForwardClock:
    """Watches all models of a directory's class, which are loaded after it was made.

    Attributes:
        model: What was called last; None before the first call.
        first_call: When that was, by ``time.perf_counter``.
        steps: Steps until now, those included that warm up for a graph.
        sizes: The different numbers of sequences of the steps, in order.
        prompt_tokens: How many were read.
    """

    def __init__(self, directory: Path) -> None:
        """Read which class a directory's model has."""
        import transformers

        config = json.loads((directory / "config.json").read_text("utf-8"))
        self._class: Any = getattr(transformers, config["architectures"][0])
        self._undo: list[Callable[[], None]] = []
        self._reading: list[tuple[Any, Any]] = []
        self.model: Any = None
        self.first_call: float | None = None
        self.steps = 0
        self.sizes: list[int] = []
        self.prompt_tokens = 0

    def __enter__(self) -> Self:
        """Begin to watch."""
        import torch

        clock, forward, replay = self, self._class.forward, torch.cuda.CUDAGraph.replay

        # transformers reads the signature
        @functools.wraps(forward)
        def watched(model: Any, *args: Any, **kwargs: Any) -> Any:
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            return clock._call(model, ids, functools.partial(forward, model, *args, **kwargs))

        @functools.wraps(replay)
        def counted(graph: Any) -> None:
            clock.steps += 1
            replay(graph)

        for owner, name, old, new in (
            (self._class, "forward", forward, watched),
            (torch.cuda.CUDAGraph, "replay", replay, counted),
        ):
            setattr(owner, name, new)
            self._undo.append(functools.partial(setattr, owner, name, old))
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the classes as they were."""
        while self._undo:
            self._undo.pop()()

    def _call(self, model: Any, ids: torch.Tensor, forward: Callable[[], Any]) -> Any:
        import torch

        self.model = model
        if self.first_call is None:
            self.first_call = time.perf_counter()
        if ids.shape[1] == 1:
            if ids.shape[0] not in self.sizes:
                self.sizes.append(ids.shape[0])
            captured = ids.is_cuda and torch.cuda.is_current_stream_capturing()
            self.steps += not captured
            return forward()
        self.prompt_tokens += ids.numel()
        before = self._now(ids)
        result = forward()
        self._reading.append((before, self._now(ids)))
        return result

    def _now(self, ids: torch.Tensor) -> Any:
        """Return the time on the device, which is behind that of the host."""
        import torch

        if not ids.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def reading_seconds(self) -> float:
        """Return what reading prompts has taken, calls of the model alone."""
        import torch

        if not self._reading or isinstance(self._reading[0][0], float):
            return float(sum(after - before for before, after in self._reading))
        torch.cuda.synchronize()
        return float(sum(before.elapsed_time(after) for before, after in self._reading) / 1e3)
