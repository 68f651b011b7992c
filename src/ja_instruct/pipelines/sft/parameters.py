"""Typed parameters of ``sft``."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ja_instruct.config import GpuParameters, Parameters, check_devices, require_known
from ja_instruct.models.cards import ModelCardParameters
from ja_instruct.models.loading import Device
from ja_instruct.pipelines.sft.trainer_names import (
    ONLY_ON_CUDA,
    REPORTERS,
    SCHEDULES,
    SCHEDULES_BY_EVALUATION,
    check_schedule,
    require_optimizer,
)

# numpy, which the trainer seeds too, refuses other numbers
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Name = Annotated[str, Field(min_length=1)]


class LoraParameters(Parameters):
    """The adapter (LoRA, arXiv:2106.09685)."""

    lora_r: int = Field(gt=0, description="Rank")
    lora_alpha: int = Field(gt=0, description="Scale; the update is multiplied by alpha / r")
    lora_dropout: float = Field(ge=0, lt=1)
    bias: Literal["none"] = Field(description="Trained biases could not be merged into the base")
    target_modules: tuple[Name, ...] = Field(min_length=1, description="Adapted linear layers")
    use_rslora: bool = Field(description="Scale by alpha / sqrt(r) (arXiv:2312.03732)")
    seed: Seed = Field(description="For the adapter's initial weights")


class TrainingParameters(Parameters):
    """The trainer's arguments, under the names that TRL and transformers give them."""

    per_device_train_batch_size: int = Field(gt=0)
    per_device_eval_batch_size: int = Field(gt=0)
    gradient_accumulation_steps: int = Field(gt=0)
    num_train_epochs: float = Field(gt=0)
    max_steps: int = Field(description="Ends training early; -1 trains whole epochs")
    learning_rate: float = Field(gt=0)
    lr_scheduler_type: str
    lr_scheduler_kwargs: dict[str, bool | int | float | str] = Field(
        description="Further arguments of the schedule, such as num_cycles"
    )
    warmup_steps: int = Field(ge=0)
    optim: str
    weight_decay: float = Field(ge=0)
    bf16: bool
    neftune_noise_alpha: float | None = Field(ge=0, description="NEFTune (arXiv:2310.05914)")
    auto_find_batch_size: bool = Field(
        description="Compute smaller pieces when memory runs out; optimizer steps stay the same"
    )
    gradient_checkpointing: bool
    tokens_per_batch: int | None = Field(
        gt=0,
        description=(
            "null: batches of per_device_train_batch_size samples in order, padded. A number: the "
            "samples of an optimizer step, per_device_train_batch_size x "
            "gradient_accumulation_steps, sorted by length, in batches of at most so many tokens"
        ),
    )
    packing: bool = Field(description="Several samples in a row, which do not attend to each other")
    logging_steps: int = Field(gt=0)
    eval_strategy: Literal["no", "steps", "epoch"] = Field(
        description="When to evaluate, besides before and after training"
    )
    eval_steps: int = Field(gt=0)
    early_stopping_patience: int | None = Field(
        gt=0,
        description="Stop after so many evaluations without a better loss; keep the best adapter",
    )
    early_stopping_threshold: float = Field(ge=0, description="Smallest better loss, in nats")
    divergence_nats: float | None = Field(
        gt=0,
        description=(
            "Stop when the mean of the last 10 logged losses is so far above the lowest such mean; "
            "null for no limit. A loss that is not finite always stops"
        ),
    )
    save_strategy: Literal["no", "steps", "epoch"]
    save_steps: int = Field(gt=0)
    save_total_limit: int = Field(gt=0)
    report_to: tuple[str, ...] = Field(
        description="Where curves are logged live: mlflow, tensorboard, wandb, …"
    )
    seed: Seed

    @field_validator("max_steps")
    @classmethod
    def _ends_or_not(cls, value: int) -> int:
        if value < 1 and value != -1:
            raise ValueError("must be at least 1, or -1 for whole epochs")
        return value

    @field_validator("optim")
    @classmethod
    def _is_an_optimizer(cls, name: str) -> str:
        require_optimizer(name)
        return name

    @field_validator("lr_scheduler_type")
    @classmethod
    def _is_a_schedule(cls, name: str) -> str:
        require_known(name, tuple(SCHEDULES), "a schedule")
        return name

    @field_validator("report_to", mode="before")
    @classmethod
    def _as_transformers_takes_them(cls, value: Any) -> Any:
        """Return a single name as a list, as transformers does; "none" names no reporter."""
        names = [value] if isinstance(value, str) else value
        return [] if names in (["none"], ("none",)) else names

    @field_validator("report_to")
    @classmethod
    def _are_reporters(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            require_known(name, tuple(REPORTERS), f"a reporter ('{name}')")
        return names

    @model_validator(mode="after")
    def _schedule_can_be_made(self) -> Self:
        check_schedule(self.lr_scheduler_type, self.lr_scheduler_kwargs, self.learning_rate)
        return self


class SftParameters(Parameters):
    """Section ``sft``."""

    backend: Literal["unsloth", "peft"] = Field(description="unsloth needs CUDA, peft does not")
    device: Device
    gpu: GpuParameters = Field(
        description=(
            "More than one device only with backend peft, data-parallel: the effective batch is "
            "per_device_train_batch_size x gradient_accumulation_steps x devices, and an epoch has "
            "correspondingly fewer steps"
        )
    )
    max_seq_length: int = Field(gt=0, description="Maximum length of a sample, in tokens")
    over_long: Literal["cut", "drop"] = Field(
        description="Whether a longer sample is cut at its end, or dropped"
    )
    completion_only_loss: bool = Field(description="Leave the prompt out of the loss")
    eval_fraction: float = Field(ge=0, lt=1, description="Share of filtered_pairs held out")
    checkpoint_dir: Name = Field(description="Where the trainer keeps its checkpoints")
    resume: bool = Field(
        description="Resume from the last checkpoint of the same model, data and parameters"
    )
    model_card: ModelCardParameters
    lora: LoraParameters
    training: TrainingParameters

    @model_validator(mode="after")
    def _devices_can_be_used(self) -> Self:
        if self.backend == "unsloth" and self.device == "cpu":
            raise ValueError("backend 'unsloth' needs device 'cuda'; on a CPU use backend 'peft'")
        several = "backend 'unsloth' trains on one; use backend 'peft', or give 1 or null"
        check_devices(
            self.gpu, self.device, refuse_several=several if self.backend == "unsloth" else ""
        )
        return self

    @model_validator(mode="after")
    def _batches_can_be_made(self) -> Self:
        tokens = self.training.tokens_per_batch
        if self.training.packing and tokens is None:
            raise ValueError("training.packing needs training.tokens_per_batch, such as 8192")
        if tokens is not None and tokens < self.max_seq_length:
            raise ValueError(
                f"training.tokens_per_batch = {tokens} is less than max_seq_length = "
                f"{self.max_seq_length}: the longest sample must fit"
            )
        return self

    @model_validator(mode="after")
    def _optimizer_fits_device(self) -> Self:
        if self.training.optim in ONLY_ON_CUDA and self.device == "cpu":
            raise ValueError(
                f"training.optim '{self.training.optim}' needs device 'cuda'; on a CPU use "
                f"adamw_torch"
            )
        return self

    @model_validator(mode="after")
    def _schedule_can_follow_the_loss(self) -> Self:
        training = self.training
        follows = training.lr_scheduler_type in SCHEDULES_BY_EVALUATION
        if follows and (training.eval_strategy == "no" or not self.eval_fraction):
            raise ValueError(
                f"training.lr_scheduler_type '{training.lr_scheduler_type}' follows the held-out "
                f"loss: it needs training.eval_strategy steps or epoch, and eval_fraction above 0"
            )
        return self

    @model_validator(mode="after")
    def _can_stop_early(self) -> Self:
        training = self.training
        if training.early_stopping_patience is None:
            return self
        if not self.eval_fraction:
            raise ValueError("training.early_stopping_patience needs eval_fraction above 0")
        if training.eval_strategy == "no" or training.eval_strategy != training.save_strategy:
            raise ValueError(
                "training.early_stopping_patience needs eval_strategy and save_strategy to be the "
                "same, steps or epoch: the best adapter is kept as a checkpoint"
            )
        if training.eval_strategy == "steps" and training.save_steps % training.eval_steps:
            raise ValueError(
                f"training.early_stopping_patience needs save_steps (now {training.save_steps}) to "
                f"be a multiple of eval_steps (now {training.eval_steps})"
            )
        return self
