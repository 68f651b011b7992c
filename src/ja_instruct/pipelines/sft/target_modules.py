"""Whether the modules that ``sft.lora.target_modules`` names exist."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ja_instruct.config import did_you_mean
from ja_instruct.errors import InputError
from ja_instruct.models.text_model import text_name

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from transformers import PreTrainedModel


def unknown_targets(target_modules: Sequence[str], modules: Collection[str]) -> list[str]:
    """Return one message for each target that names no linear layer in the model's blocks.

    PEFT, which refuses only a list of which nothing matches, compares like this: a target is the
    name of a module, or its last parts. It also adapts embedding and head, but such an adapter
    could not be merged into the base.

    Args:
        target_modules: The targets.
        modules: Names of the model's modules.

    >>> names = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "lm_head"]
    >>> unknown_targets(["self_attn.q_proj", "uproj", "lm_head"], names)
    ["'uproj' is not a linear layer of the model's blocks; did you mean 'up_proj'?",
     "'lm_head' is not a linear layer of the model's blocks, which have q_proj, up_proj"]
    >>> names = ["language_model.model.layers.0.mlp.up_proj", "vision_tower.layers.0.fc1"]
    >>> unknown_targets(["up_proj", "fc1"], names)
    ["'fc1' is not a linear layer of the model's blocks, which have up_proj"]
    """
    in_blocks = [name for name in map(text_name, modules) if re.search(r"\.\d+\.", name)]
    # of a multimodal checkpoint the language model alone is trained
    in_blocks = [name for name in in_blocks if name.startswith("model.layers.")] or in_blocks
    last_parts = sorted({name.rpartition(".")[2] for name in in_blocks})
    problems = []
    for target in target_modules:
        if not any(f".{name}".endswith(f".{target}") for name in in_blocks):
            nearest = did_you_mean(target, last_parts) or f", which have {', '.join(last_parts)}"
            problems.append(f"'{target}' is not a linear layer of the model's blocks{nearest}")
    return problems


def require_targets(target_modules: Sequence[str], model: PreTrainedModel) -> None:
    """Raise ``InputError`` if a target names no module of a loaded model that has a matrix."""
    names = [
        name.removesuffix(".weight")
        for name, weight in model.named_parameters()
        if name.endswith(".weight") and weight.dim() > 1
    ]
    problems = unknown_targets(target_modules, names)
    if problems:
        raise InputError(f"'sft.lora.target_modules': {'; '.join(problems)}")
