"""Stopping a training that cannot come to anything. Imports transformers where it is used."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from transformers import TrainerCallback

from ja_instruct.errors import InputError

WINDOW = 10


class LossWatch(TrainerCallback):  # type: ignore[misc]
    """Raises ``InputError`` when the loss is no number, or rises and stays up.

    What was saved before stays: the checkpoints, and the curves in MLflow.
    """

    def __init__(self, divergence_nats: float | None) -> None:
        """Create the watch.

        Args:
            divergence_nats: How far the mean of the last 10 logged losses may rise above the
                lowest such mean; None lets it rise.
        """
        self._divergence_nats = divergence_nats
        self._last: deque[float] = deque(maxlen=WINDOW)
        self._lowest = math.inf

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Look at what has just been logged."""
        for key in ("loss", "grad_norm", "eval_loss"):
            value = (logs or {}).get(key)
            if value is not None and not math.isfinite(value):
                raise InputError(
                    f"training stopped at step {state.global_step}: {key} is {value}. Lower "
                    f"sft.training.learning_rate (now {args.learning_rate:g}) or raise "
                    f"sft.training.warmup_steps (now {args.warmup_steps:g}); checkpoints saved "
                    f"before are kept in {args.output_dir}"
                )
        if logs and "loss" in logs:
            self._follow(float(logs["loss"]), args, state)

    def _follow(self, loss: float, args: Any, state: Any) -> None:
        self._last.append(loss)
        if self._divergence_nats is None or len(self._last) < WINDOW:
            return
        mean = sum(self._last) / WINDOW
        self._lowest = min(self._lowest, mean)
        if mean > self._lowest + self._divergence_nats:
            raise InputError(
                f"training stopped at step {state.global_step}: the loss diverges, {mean:.2f} nats "
                f"a token over the last {WINDOW} entries, {self._lowest:.2f} at its lowest. Lower "
                f"sft.training.learning_rate (now {args.learning_rate:g}), or raise "
                f"sft.training.divergence_nats (now {self._divergence_nats:g}; null never stops); "
                f"checkpoints saved before are kept in {args.output_dir}"
            )
