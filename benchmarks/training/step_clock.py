"""Times the optimizer steps of a trainer. Imports transformers: import unsloth first."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from collections.abc import Callable


class StepClock(TrainerCallback):  # type: ignore[misc]
    """A callback that waits for the device at the end of each step and notes the time.

    All sides are timed by it, so they share the cost of waiting, under a millisecond.
    """

    def __init__(self, report: Callable[[], None], begin: Callable[[], object] = list) -> None:
        """Call ``begin`` when training begins, maybe again, and ``report`` after each step."""
        self._report = report
        self._begin = begin
        self._began = 0.0
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.token_sums: list[int] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start again: so does a trainer with a smaller batch after running out of memory."""
        for noted in (self.ends, self.losses, self.token_sums):
            noted.clear()
        self._begin()
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Note the loss, and the number of tokens so far if it is logged."""
        if "loss" in (logs or {}):
            self.losses.append(float(logs["loss"]))
            if "tokens" in logs:
                self.token_sums.append(int(logs["tokens"]))
            self._report()

    def step_seconds(self) -> list[float]:
        """Return the seconds of each step, including the time since the step before."""
        return [end - start for start, end in pairwise([self._began, *self.ends])]

    def tokens(self) -> list[int] | None:
        """Return the real tokens of each step; None if the trainer does not count them."""
        return [after - before for before, after in pairwise([0, *self.token_sums])] or None
