"""The trainer's callbacks. Imports transformers: import this module where it is used."""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import ProgressCallback, TrainerCallback

from ja_instruct.errors import InputError
from ja_instruct.pipelines.sft.checkpoints import has_ended

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import TrainerControl, TrainerState, TrainingArguments

    from ja_instruct.pipelines.sft.step_trainer import StepTrainer

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

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the losses up to the checkpoint."""
        for entry in state.log_history:
            if "loss" in entry:
                self._note(entry["loss"])

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
            self._note(float(logs["loss"]))
            self._require_no_divergence(args, state.global_step)

    def _note(self, loss: float) -> None:
        self._last.append(loss)
        if len(self._last) == WINDOW:
            self._lowest = min(self._lowest, sum(self._last) / WINDOW)

    def _require_no_divergence(self, args: TrainingArguments, step: int) -> None:
        mean = sum(self._last) / WINDOW
        if self._divergence_nats is not None and mean > self._lowest + self._divergence_nats:
            raise InputError(
                f"training stopped at step {step}: the loss diverges, {mean:.2f} nats "
                f"a token over the last {WINDOW} entries, {self._lowest:.2f} at its lowest. Lower "
                f"sft.training.learning_rate (now {args.learning_rate:g}), or raise "
                f"sft.training.divergence_nats (now {self._divergence_nats:g}; null for no limit); "
                f"checkpoints saved before are kept in {args.output_dir}"
            )


class Resumption(TrainerCallback):  # type: ignore[misc]
    """Lets a training that resumes from a checkpoint end as if it had not been interrupted."""

    def __init__(self, trainer: StepTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Continue the trainer's sums, find the best checkpoint, and end a finished training."""
        self._trainer.begin_sums()
        best = Path(str(args.output_dir)) / f"checkpoint-{state.best_global_step}"
        if state.best_global_step and best.is_dir():
            # the recorded path is wrong when the folder has been moved
            state.best_model_checkpoint = str(best)
        control.should_training_stop = has_ended(vars(state))


class SaveAfterEvaluation(TrainerCallback):  # type: ignore[misc]
    """Saves the checkpoint of an epoch's last step after the evaluation at the epoch's end.

    Otherwise, as training resumes with the next epoch, the evaluation would be left out.
    """

    def __init__(self) -> None:
        self._is_due = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put off the checkpoint of the last step."""
        is_last = control.should_training_stop or state.epoch == int(state.epoch)
        self._is_due = control.should_save and is_last and args.eval_strategy == "epoch"
        control.should_save = control.should_save and not self._is_due

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save what was put off."""
        control.should_save = control.should_save or self._is_due
        self._is_due = False
