"""The trainer's callbacks. Imports transformers: import this module where it is used."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any

from transformers import ProgressCallback, TrainerCallback

from ja_instruct.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import TrainerControl, TrainerState, TrainingArguments

WINDOW = 10


class LossInProgressBar(ProgressCallback):  # type: ignore[misc]
    """Shows the latest loss in the progress bar; the stock callback prints dictionaries."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Name the bar."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("sft: training")

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Name the bar of an evaluation."""
        super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)
        if self.prediction_bar is not None:
            self.prediction_bar.set_description("sft: evaluating")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the losses that were just logged."""
        shown = {key: logs[key] for key in ("loss", "eval_loss") if logs and key in logs}
        if state.is_world_process_zero and self.training_bar is not None and shown:
            self.training_bar.set_postfix(shown)


class LossWatch(TrainerCallback):  # type: ignore[misc]
    """Raises ``InputError`` when the loss is not finite, or rises and stays up.

    The mean of the last 10 logged losses may rise by ``divergence_nats`` above the lowest such
    mean; None sets no limit. Checkpoints and MLflow's curves that were saved before are kept.
    """

    def __init__(self, divergence_nats: float | None) -> None:
        self._divergence_nats = divergence_nats
        self._last: deque[float] = deque(maxlen=WINDOW)
        self._lowest = math.inf

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Check the entry that was just logged."""
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
            self._require_no_divergence(float(logs["loss"]), args, state.global_step)

    def _require_no_divergence(self, loss: float, args: TrainingArguments, step: int) -> None:
        self._last.append(loss)
        if self._divergence_nats is None or len(self._last) < WINDOW:
            return
        mean = sum(self._last) / WINDOW
        self._lowest = min(self._lowest, mean)
        if mean > self._lowest + self._divergence_nats:
            raise InputError(
                f"training stopped at step {step}: the loss diverges, {mean:.2f} nats "
                f"a token over the last {WINDOW} entries, {self._lowest:.2f} at its lowest. Lower "
                f"sft.training.learning_rate (now {args.learning_rate:g}), or raise "
                f"sft.training.divergence_nats (now {self._divergence_nats:g}; null for no limit); "
                f"checkpoints saved before are kept in {args.output_dir}"
            )
