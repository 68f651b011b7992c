"""How many optimizer steps a training has, and parameters that do not fit that number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ja_instruct.pipelines.sft.trainer_names import SCHEDULES_BY_EVALUATION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ja_instruct.pipelines.sft.parameters import SftParameters

_WITHOUT_WARMUP = SCHEDULES_BY_EVALUATION | {"constant"}


@dataclass(frozen=True)
class StepCounts:
    """The parameters of a training and the numbers of its samples.

    Attributes:
        train_samples: Samples to train on, of which long ones may be dropped.
        eval_samples: Held-out samples, of which long ones may be dropped.
        parameters: Section ``sft``.
        section: Its name in messages.
    """

    train_samples: int
    eval_samples: int
    parameters: SftParameters
    section: str = "sft"

    @property
    def steps(self) -> int:
        """Optimizer steps from start to end, as the trainer computes them."""
        training = self.parameters.training
        if training.max_steps > 0:
            return training.max_steps
        batches = math.ceil(
            math.ceil(self.train_samples / self._devices) / training.per_device_train_batch_size
        )
        steps = max(1, math.ceil(batches / training.gradient_accumulation_steps))
        return math.ceil(training.num_train_epochs * steps)

    @property
    def _devices(self) -> int:
        return self.parameters.gpu.devices or 1

    def errors(self) -> list[str]:
        """Return why the training would not do what the parameters say."""
        training = self.parameters.training
        follows = training.lr_scheduler_type in SCHEDULES_BY_EVALUATION
        patience = training.early_stopping_patience
        if patience is None and not follows:
            return []
        name = f"{self.section}.training." + (
            f"lr_scheduler_type = '{training.lr_scheduler_type}'"
            if follows
            else f"early_stopping_patience = {patience}"
        )
        if not self.eval_samples:
            return [
                f"{name} needs held-out samples, but {self.section}.eval_fraction = "
                f"{self.parameters.eval_fraction:g} holds out none; raise it"
            ]
        if training.eval_strategy == "steps" and training.eval_steps > self.steps:
            return [
                f"{name} needs evaluations, but training ends after {self.steps} steps and the "
                f"first is after eval_steps = {training.eval_steps}; lower eval_steps"
            ]
        return []

    def warnings(self) -> list[str]:
        """Return which parameters have no effect, or an unexpected one."""
        return [f"{self.section}.{text}" for text in (*self._of_steps(), *self._of_evaluation())]

    def _of_steps(self) -> Iterator[str]:
        training, steps = self.parameters.training, self.steps
        ends = f"training ends after {steps} steps"
        if training.warmup_steps >= steps and training.lr_scheduler_type not in _WITHOUT_WARMUP:
            reached = training.learning_rate * (steps - 1) / training.warmup_steps
            yield (
                f"training.warmup_steps = {training.warmup_steps}, but {ends}: the learning rate "
                f"reaches {reached:.2g} and not {training.learning_rate:g}; lower warmup_steps"
            )
        decay = training.lr_scheduler_kwargs.get("num_decay_steps", 0)
        if training.warmup_steps < steps < training.warmup_steps + float(decay):
            yield (
                f"training.lr_scheduler_kwargs.num_decay_steps = {decay:g} after warmup_steps = "
                f"{training.warmup_steps}, but {ends}: the learning rate does not reach "
                f"{training.learning_rate:g}; lower num_decay_steps"
            )
        if training.save_strategy == "steps" and training.save_steps > steps:
            yield (
                f"training.save_steps = {training.save_steps}, but {ends}: an interrupted training "
                f"begins again"
            )
        if training.logging_steps > steps:
            yield (
                f"training.logging_steps = {training.logging_steps}, but {ends}: there is no curve "
                f"of the training loss"
            )

    def _of_evaluation(self) -> Iterator[str]:
        training, steps = self.parameters.training, self.steps
        fraction = self.parameters.eval_fraction
        if not self.eval_samples:
            if training.eval_strategy != "no" or fraction:
                yield (
                    f"eval_fraction = {fraction:g} holds out no samples: nothing is evaluated, and "
                    f"training.eval_strategy = '{training.eval_strategy}' has no effect"
                )
            return
        batch = training.per_device_eval_batch_size * self._devices
        if self.eval_samples < batch:
            devices = f" on each of {self._devices} devices" if self._devices > 1 else ""
            yield (
                f"training.per_device_eval_batch_size = {training.per_device_eval_batch_size}"
                f"{devices}, but only {self.eval_samples} samples are held out: the evaluation "
                f"loss is that of a few samples; raise eval_fraction (now {fraction:g})"
            )
        if training.eval_strategy != "steps":
            return
        patience = training.early_stopping_patience
        if training.eval_steps > steps:
            yield (
                f"training.eval_steps = {training.eval_steps}, but training ends after {steps} "
                f"steps: there is no evaluation between its start and its end"
            )
        elif patience is not None and training.eval_steps * patience >= steps:
            yield (
                f"training.early_stopping_patience = {patience} evaluations, one every "
                f"{training.eval_steps} steps, but training ends after {steps} steps: it cannot "
                f"stop early"
            )


def held_out_count(pairs: int, eval_fraction: float) -> int:
    """Return how many of the pairs are held out."""
    return math.floor(pairs * eval_fraction)
