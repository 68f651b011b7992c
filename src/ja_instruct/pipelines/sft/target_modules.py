"""Whether the modules that ``sft.lora.target_modules`` names exist."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ja_instruct.config import did_you_mean
from ja_instruct.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from transformers import PreTrainedModel

# A head that shares the embedding's weights is not among a checkpoint's names
_TIED_HEAD = "lm_head"


def unknown_targets(target_modules: Sequence[str], modules: Collection[str]) -> list[str]:
    """Return one message for each target that names no module.

    PEFT, which refuses a list alone of which nothing matches, compares like this: a target is the
    name of a module, or its last parts.

    Args:
        target_modules: The targets.
        modules: Names of the model's modules.

    >>> names = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"]
    >>> unknown_targets(["self_attn.q_proj", "uproj", "query_key_value"], names)
    ["'uproj' is not a linear layer of the model; did you mean 'up_proj'?",
     "'query_key_value' is not a linear layer of the model, which has q_proj, up_proj"]
    """
    problems = []
    for target in target_modules:
        ending = f".{target}"
        if any(name == target or name.endswith(ending) for name in (*modules, _TIED_HEAD)):
            continue
        in_layers = [name for name in modules if re.search(r"\.\d+\.", name)]
        last_parts = sorted({name.rpartition(".")[2] for name in in_layers or modules})
        nearest = did_you_mean(target, last_parts) or f", which has {', '.join(last_parts)}"
        problems.append(f"'{target}' is not a linear layer of the model{nearest}")
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
