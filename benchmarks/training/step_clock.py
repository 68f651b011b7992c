"""When each optimizer step of a trainer ends, and its loss. Imports transformers: unsloth first."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from collections.abc import Callable


class StepClock(TrainerCallback):  # type: ignore[misc]
    """A callback that waits for the device at the end of each step and notes the time.

    All sides are timed by it, so what the waiting costs, under a millisecond, they share.
    """

    def __init__(self, report: Callable[[], None], begin: Callable[[], object] = list) -> None:
        """Take what to call when training begins, maybe again, and after each step.

        A report after each step lets what was measured outlive a failure.
        """
        self._report = report
        self._begin = begin
        self._began = 0.0
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.token_sums: list[int] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin anew: a smaller batch after running out of memory starts over."""
        self.ends.clear()
        self.losses.clear()
        self.token_sums.clear()
        self._begin()
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Note the loss, and the tokens until now where they are counted, after each step."""
        if "loss" in (logs or {}):
            self.losses.append(float(logs["loss"]))
            if "tokens" in logs:
                self.token_sums.append(int(logs["tokens"]))
            self._report()

    def step_seconds(self) -> list[float]:
        """Return how long each step took, what lies between two steps included."""
        starts = [self._began, *self.ends]
        return [end - start for start, end in zip(starts, self.ends, strict=False)]

    def tokens(self) -> list[int] | None:
        """Return the real tokens of each step, None where the trainer does not count them."""
        pairs = zip([0, *self.token_sums], self.token_sums, strict=False)
        return [after - before for before, after in pairs] or None
