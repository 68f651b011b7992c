"""Names that the trainer knows: optimizers, learning rate schedules, reporters of curves.

transformers checks them when the model is loaded and the samples are encoded. Its own lists take 4
seconds to import, in every command that reads parameters, so they stand here; a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ja_instruct.config import require_known

if TYPE_CHECKING:
    from collections.abc import Iterable

# Packages of optimizers beyond the base installation: to import, to install
_PACKAGES = {
    "adamw_torch_4bit": ("torchao", "torchao"),
    "adamw_torch_8bit": ("torchao", "torchao"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "schedule_free_adamw": ("schedulefree", "schedulefree"),
    "schedule_free_radam": ("schedulefree", "schedulefree"),
    "schedule_free_sgd": ("schedulefree", "schedulefree"),
    "stable_adamw": ("optimi", "torch-optimi"),
}
OPTIMIZERS = (
    "adafactor",
    "adagrad",
    "adamw_8bit",
    "adamw_bnb_8bit",
    "adamw_torch",
    "adamw_torch_4bit",
    "adamw_torch_8bit",
    "adamw_torch_fused",
    "ademamix",
    "ademamix_8bit",
    "grokadamw",
    "lion_32bit",
    "lion_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "rmsprop",
    "rmsprop_bnb",
    "rmsprop_bnb_32bit",
    "rmsprop_bnb_8bit",
    "schedule_free_adamw",
    "schedule_free_radam",
    "schedule_free_sgd",
    "sgd",
    "stable_adamw",
)
# transformers' other optimizers, by the beginnings of their names
UNSUPPORTED_OPTIMIZERS = {
    "adalomo": "it updates weights during the backward pass, without accumulating gradients",
    "adamw_anyprecision": "it needs torchdistx, which PyTorch has given up",
    "adamw_torch_npu": "it needs an Ascend NPU",
    "adamw_torch_xla": "it needs a TPU",
    "apollo": "it projects whole matrices, which LoRA does not train",
    "galore": "it projects whole matrices, which LoRA does not train",
    "lomo": "it updates weights during the backward pass, without accumulating gradients",
}
# bitsandbytes moves the states of other paged optimizers to the CPU by itself
ONLY_ON_CUDA = frozenset(("paged_ademamix_32bit", "paged_ademamix_8bit"))

_PLATEAU = (
    "mode",
    "factor",
    "patience",
    "threshold",
    "threshold_mode",
    "cooldown",
    "min_lr",
    "eps",
)
# The arguments of each schedule that lr_scheduler_kwargs can set
SCHEDULES: Mapping[str, tuple[str, ...]] = {
    "constant": (),
    "constant_with_warmup": (),
    "cosine": ("num_cycles",),
    "cosine_warmup_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"),
    "cosine_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate"),
    "cosine_with_restarts": ("num_cycles",),
    "greedy": (*_PLATEAU, "warmup", "max_lr", "smooth", "window_size", "reset_start"),
    "inverse_sqrt": ("timescale",),
    "linear": (),
    "polynomial": ("lr_end", "power"),
    "reduce_lr_on_plateau": _PLATEAU,
    "warmup_stable_decay": (
        "num_decay_steps",
        "num_stable_steps",
        "warmup_type",
        "decay_type",
        "min_lr_ratio",
        "num_cycles",
    ),
}
# Arguments of which a schedule needs one
_NEEDED = {
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "warmup_stable_decay": ("num_decay_steps",),
}
# The other arguments are numbers
_CHOICES: Mapping[str, tuple[bool | str, ...]] = {
    "mode": ("min", "max"),
    "threshold_mode": ("rel", "abs"),
    "warmup_type": ("linear", "cosine", "1-sqrt"),
    "decay_type": ("linear", "cosine", "1-sqrt"),
    "smooth": (True, False),
}
# Beyond these, transformers divides by zero or takes a root of a negative number in the middle of a
# training, or the rate rises above learning_rate
_POSITIVE = frozenset(("num_cycles", "num_decay_steps", "power", "timescale"))
_SHARES = frozenset(("factor", "min_lr_rate", "min_lr_ratio", "warmup_lr_rate"))
_RATES = frozenset(("lr_end", "min_lr"))
# They follow the held-out loss
SCHEDULES_BY_EVALUATION = frozenset(("greedy", "reduce_lr_on_plateau"))
_LR_END = 1e-7  # of polynomial

# With their packages
REPORTERS = {
    "azure_ml": ("azureml", "azureml-sdk"),
    "clearml": ("clearml", "clearml"),
    "codecarbon": ("codecarbon", "codecarbon"),
    "comet_ml": ("comet_ml", "comet-ml"),
    "dagshub": ("dagshub", "dagshub"),
    "dvclive": ("dvclive", "dvclive"),
    "flyte": ("flytekit", "flytekit"),
    "mlflow": ("mlflow", "mlflow"),
    "neptune": ("neptune", "neptune"),
    "swanlab": ("swanlab", "swanlab"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "trackio": ("trackio", "trackio"),
    "wandb": ("wandb", "wandb"),
}


def require_optimizer(name: str) -> None:
    """Raise ``ValueError`` if training cannot use an optimizer of this name."""
    for beginning, reason in UNSUPPORTED_OPTIMIZERS.items():
        if name.startswith(beginning):
            raise ValueError(f"this optimizer cannot be used: {reason}; use adamw_8bit")
    require_known(name, OPTIMIZERS, "an optimizer")


def check_schedule(name: str, arguments: Mapping[str, Any], learning_rate: float) -> None:
    """Raise ``ValueError`` if transformers cannot make a schedule with these arguments."""
    for argument, value in arguments.items():
        key = f"lr_scheduler_kwargs.{argument}"
        if argument not in SCHEDULES[name]:
            known = ", ".join(SCHEDULES[name])
            raise ValueError(
                f"{key}: lr_scheduler_type '{name}' has "
                + (f"the arguments {known}" if known else "no arguments")
            )
        choices = _CHOICES.get(argument)
        if choices and value not in choices:
            raise ValueError(f"{key} = {value!r}: must be {' or '.join(map(str, choices))}")
        if not choices and isinstance(value, bool | str):
            raise ValueError(f"{key} = {value!r}: must be a number")
    needed = _NEEDED.get(name, ())
    if needed and not any(argument in arguments for argument in needed):
        raise ValueError(
            f"lr_scheduler_type '{name}' needs lr_scheduler_kwargs.{' or '.join(needed)}"
        )
    if {"min_lr", "min_lr_rate"} <= {*arguments}:
        raise ValueError("lr_scheduler_kwargs has min_lr and min_lr_rate; set one of them")
    if name == "polynomial":
        arguments = {"lr_end": _LR_END, **arguments}
    for argument, value in arguments.items():
        if bound := _exceeded(argument, value, learning_rate):
            raise ValueError(
                f"lr_scheduler_kwargs.{argument} = {value:g}, which must be {bound} "
                f"(lr_scheduler_type '{name}')"
            )


def _exceeded(argument: str, value: float | str, learning_rate: float) -> str:
    """Return what an argument must be; an empty string if it is."""
    if isinstance(value, str | bool):
        return ""
    if argument in _RATES and not 0 <= value < learning_rate:
        return f"below learning_rate = {learning_rate:g}, and not negative"
    if argument in _SHARES and not 0 <= value < 1:
        return "0 or above, and below 1"
    if argument in _POSITIVE and value <= 0:
        return "above 0"
    return "0 or above" if value < 0 else ""


def missing_packages(names: Iterable[str]) -> dict[str, str]:
    """Return what to install for each optimizer or reporter whose package is missing.

    >>> missing_packages(["adamw_torch", "mlflow"])
    {}
    """
    packages = _PACKAGES | REPORTERS
    needed = {name: packages[name] for name in names if name in packages}
    return {name: pip for name, (module, pip) in needed.items() if find_spec(module) is None}
