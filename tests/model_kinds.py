"""Tiny random models whose tokenizer, sizes or surroundings differ from those of most models."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import transformers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "initializer_range": 0.05,
    "max_position_embeddings": 8192,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {
    "depth": 1,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "out_hidden_size": 64,
    "patch_size": 14,
}


def _gemma3(rows: int) -> Any:
    text = {**TEXT, "vocab_size": rows, "query_pre_attn_scalar": 32, "sliding_window": 64}
    text["layer_types"] = ["sliding_attention", "full_attention"]
    config = transformers.Gemma3Config(
        text_config=text, vision_config=VISION, mm_tokens_per_image=1, image_token_index=rows - 1
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def _mistral3(rows: int) -> Any:
    text = {**TEXT, "vocab_size": rows, "model_type": "mistral"}
    config = transformers.Mistral3Config(
        text_config=text,
        vision_config={**VISION, "model_type": "pixtral", "head_dim": 32},
        tie_word_embeddings=False,
        image_token_index=rows - 1,
    )
    return transformers.Mistral3ForConditionalGeneration(config)


def _qwen_vl(family: str, vision: dict[str, Any], rows: int) -> Any:
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e6}
    config = getattr(transformers, f"{family}Config")(
        text_config={**TEXT, "vocab_size": rows, "rope_parameters": rope},
        vision_config={**QWEN_VISION, **vision},
        image_token_id=rows - 1,
    )
    return getattr(transformers, f"{family}ForConditionalGeneration")(config)


MULTIMODAL: dict[str, Callable[[int], Any]] = {
    "gemma3": _gemma3,
    "mistral3": _mistral3,
    "qwen2_5_vl": partial(_qwen_vl, "Qwen2_5_VL", {"fullatt_block_indexes": [0]}),
    "qwen3_vl": partial(
        _qwen_vl, "Qwen3VL", {"deepstack_visual_indexes": [0], "num_position_embeddings": 4}
    ),
}


# What differs from a small Llama with a head of its own
PLAIN: dict[str, dict[str, Any]] = {
    "untied head": {"tie_word_embeddings": False},
    "tied head": {"tie_word_embeddings": True},
    "odd sizes": {"hidden_size": 60, "intermediate_size": 90, "head_dim": 30},
    "no BOS": {"bos_token_id": None},
    "pad is EOS": {"pad_token_id": None},
    "unused rows": {"vocab_size": 3008},
    "token types": {},
    "biases": {"attention_bias": True, "mlp_bias": True},
}


def make_qwen_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer of single bytes; Qwen's models have no other class, and no BOS."""
    from tokenizers.pre_tokenizers import ByteLevel

    ends = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    pieces = [*sorted(ByteLevel.alphabet()), *ends]
    vocabulary = {piece: position for position, piece in enumerate(pieces)}
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ends[1:]})
    return tokenizer


def _remove_tie(path: Path) -> None:
    """Leave to the weights whether the head is tied, as published checkpoints do."""
    config = json.loads(path.read_text("utf-8"))
    for part in (config, config["text_config"]):
        part.pop("tie_word_embeddings", None)
    path.write_text(json.dumps(config), "utf-8")


def make_kind(kind: str, directory: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Write a model of one of the kinds, with the tokenizer; return the directory."""
    if kind.startswith("qwen"):
        tokenizer = make_qwen_tokenizer()
    rows = 64 * -(-len(tokenizer) // 64)
    torch.manual_seed(0)
    if kind in MULTIMODAL:
        model = MULTIMODAL[kind](rows).float()
    else:
        config = transformers.LlamaConfig(**{**TEXT, "vocab_size": rows, **PLAIN[kind]})
        model = transformers.LlamaForCausalLM(config)
    if kind == "pad is EOS":
        tokenizer.pad_token = tokenizer.eos_token
    if kind == "token types":
        # an attribute would not be saved
        names = ["input_ids", "token_type_ids", "attention_mask"]
        tokenizer.init_kwargs["model_input_names"] = names
    if kind == "no BOS":
        tokenizer.bos_token = None
        tokenizer.add_bos_token = False
        tokenizer.update_post_processor()
    # random weights give logits so small that an adapter would hardly change them
    torch.nn.init.constant_(model.get_decoder().norm.weight, 16.0)
    model.save_pretrained(directory)
    if kind == "mistral3":
        _remove_tie(directory / "config.json")
    tokenizer.save_pretrained(directory)
    return directory
