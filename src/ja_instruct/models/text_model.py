"""The language model inside a multimodal checkpoint, as a causal language model of its own.

Quantization, training and inference use it alone, so neither LoRA nor the 4-bit weights reach a
vision tower. Gemma 3 (4b to 27b), Mistral 3, Qwen2-VL, Qwen2.5-VL and Qwen3-VL are such.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ja_instruct.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from transformers import PreTrainedConfig, PreTrainedModel

# Language models that transformers has no class for, and the family with the same layers. Their
# rotary embedding divides its frequencies among three positions, which are equal in a text.
_SAME_LAYERS = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
# The two layouts of checkpoints: 'language_model.model.layers' and 'model.language_model.layers'.
# Qwen2-VL's names are those of its language model already.
_RENAMED = {
    r"^language_model\.lm_head\.": "lm_head.",
    r"^(?:model\.)?language_model\.(?:model\.)?": "model.",
}
HEAD = "lm_head.weight"
# What the text model's configuration does not repeat
_SHARED = ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")


def is_multimodal(config: Mapping[str, Any]) -> bool:
    """Return whether a ``config.json`` describes a language model with other parts."""
    return "text_config" in config or "vision_config" in config


def text_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``config.json`` with the language model's settings, which may be in a part of it."""
    return {**config, **config.get("text_config", {})}


def mark_multimodal(config: Mapping[str, Any]) -> dict[str, bool]:
    """Return the entry for the provenance of a model; empty for a language model alone.

    >>> mark_multimodal({"model_type": "gemma3", "text_config": {}}), mark_multimodal({})
    ({'multimodal': True}, {})
    """
    return {"multimodal": True} if is_multimodal(config) else {}


def text_name(name: str) -> str:
    """Return the name of a tensor in the language model alone.

    >>> text_name("model.language_model.layers.0.mlp.up_proj.weight")
    'model.layers.0.mlp.up_proj.weight'
    >>> text_name("language_model.lm_head.weight")
    'lm_head.weight'
    """
    for pattern, replacement in _RENAMED.items():
        name = re.sub(pattern, replacement, name)
    return name


def causal_config(directory: Path) -> PreTrainedConfig:
    """Return the configuration of a model's causal language model.

    Args:
        directory: Contains ``config.json``; the weights need not be there.

    Raises:
        InputError: transformers has no causal language model with these layers.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config: PreTrainedConfig = AutoConfig.from_pretrained(directory, local_files_only=True)
    if "text_config" not in config.sub_configs:
        return config
    text: Any = config.get_text_config()
    if text.model_type in _SAME_LAYERS:
        text = _with_plain_positions(text)
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"{directory}: the language model of this '{config.model_type}' is a "
            f"'{text.model_type}', which transformers cannot load as a causal language model; give "
            f"a checkpoint of a language model alone"
        )
    for key in _SHARED:
        value = getattr(config, key, None)
        if value is not None:
            setattr(text, key, value)
    return text  # type: ignore[no-any-return]


def _with_plain_positions(text: PreTrainedConfig) -> PreTrainedConfig:
    from transformers import AutoConfig

    fields: dict[str, Any] = text.to_dict()
    family = _SAME_LAYERS[fields.pop("model_type")]
    rope = {
        key: value
        for key, value in fields["rope_parameters"].items()
        if not key.startswith("mrope_")
    }
    plain: PreTrainedConfig = AutoConfig.for_model(family, **{**fields, "rope_parameters": rope})
    return plain


def load_text_model(directory: Path, config: PreTrainedConfig, **kwargs: Any) -> PreTrainedModel:
    """Load the language model of a multimodal checkpoint; the other parts are not read.

    Args:
        directory: Configuration and weights of the whole checkpoint.
        config: What ``causal_config`` returns.
        kwargs: Passed to ``from_pretrained``.

    Raises:
        InputError: A weight of the language model is missing.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a line for each weight of the other parts
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            key_mapping=_RENAMED,
            output_loading_info=True,
            local_files_only=True,
            **kwargs,
        )
    finally:
        logging.set_verbosity(verbosity)
    model, found = loaded
    missing = sorted(found["missing_keys"])
    if missing:
        raise InputError(
            f"{directory}: its safetensors have no '{missing[0]}' of the language model; download "
            f"the model again"
        )
    # save_pretrained would reverse the renaming
    model.__dict__.pop("_weight_conversions", None)
    return model  # type: ignore[no-any-return]
