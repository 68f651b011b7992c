"""Typed parameters of ``sft``."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ja_instruct.devices import Device
from ja_instruct.parameters import GpuParameters, Parameters, check_devices


class LoraParameters(Parameters):
    """The adapter (LoRA, arXiv:2106.09685)."""

    lora_r: int = Field(gt=0, description="Rank")
    lora_alpha: int = Field(gt=0, description="Scale; the update is multiplied by alpha / r")
    lora_dropout: float = Field(ge=0, lt=1)
    bias: Literal["none", "all", "lora_only"]
    target_modules: tuple[str, ...] = Field(min_length=1, description="Adapted linear layers")
    use_rslora: bool = Field(description="Scale by alpha / sqrt(r) (arXiv:2312.03732)")
    seed: int = Field(description="Initialises the adapter's weights")


class TrainingParameters(Parameters):
    """The trainer's arguments, under the names that TRL and transformers give them."""

    per_device_train_batch_size: int = Field(gt=0)
    per_device_eval_batch_size: int = Field(gt=0)
    gradient_accumulation_steps: int = Field(gt=0)
    num_train_epochs: float = Field(gt=0)
    max_steps: int = Field(description="Ends training earlier; -1 for whole epochs")
    learning_rate: float = Field(gt=0)
    lr_scheduler_type: str
    warmup_steps: int = Field(ge=0)
    optim: str
    weight_decay: float = Field(ge=0)
    bf16: bool
    neftune_noise_alpha: float | None = Field(description="NEFTune (arXiv:2310.05914)")
    auto_find_batch_size: bool = Field(description="Halve the batch size on out-of-memory")
    gradient_checkpointing: bool
    packing: bool
    logging_steps: int = Field(gt=0)
    eval_strategy: Literal["no", "steps", "epoch"] = Field(
        description="When to evaluate between the evaluations before and after training"
    )
    eval_steps: int = Field(gt=0)
    save_strategy: Literal["no", "steps", "epoch"]
    save_steps: int = Field(gt=0)
    save_total_limit: int = Field(gt=0)
    report_to: tuple[Literal["mlflow"], ...] = Field(description="Where curves are logged live")
    seed: int


class SftParameters(Parameters):
    """Everything ``sft`` can be told."""

    backend: Literal["unsloth", "peft"] = Field(
        description="unsloth needs CUDA; peft runs anywhere"
    )
    device: Device
    gpu: GpuParameters = Field(
        description=(
            "More than one device only with backend peft, data-parallel: each takes batches of "
            "its own, so the effective batch is per_device_train_batch_size x "
            "gradient_accumulation_steps x devices, and an epoch has as many fewer steps"
        )
    )
    max_seq_length: int = Field(gt=0, description="Longer samples are cut, in tokens")
    answer_only_loss: bool = Field(description="Leave the question out of the loss")
    eval_fraction: float = Field(ge=0, lt=1, description="Share of filtered_pairs held out")
    checkpoint_dir: str = Field(description="Where the trainer keeps its checkpoints")
    lora: LoraParameters
    training: TrainingParameters

    @model_validator(mode="after")
    def _backend_fits_device(self) -> Self:
        if self.backend == "unsloth" and self.device == "cpu":
            raise ValueError("backend 'unsloth' needs device 'cuda'; on a CPU use backend 'peft'")
        return self

    @model_validator(mode="after")
    def _devices_can_be_used(self) -> Self:
        several = "backend 'unsloth' trains on one; use backend 'peft', or give 1 or null"
        check_devices(
            self.gpu, self.device, refuse_several=several if self.backend == "unsloth" else ""
        )
        return self
