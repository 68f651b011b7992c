"""Small random language models of several families, in float32."""

from typing import Any

import torch
import transformers

SIZES = {
    "vocab_size": 600,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.2,
}
FAMILIES: dict[str, tuple[Any, Any]] = {
    "gemma2": (transformers.Gemma2ForCausalLM, transformers.Gemma2Config),
    "gemma3": (transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig),
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config),
}


def random_model(family: str, **changes: Any) -> Any:
    """Return the same model in each call, for evaluation; ``changes`` are those of its sizes."""
    kind, config = FAMILIES[family]
    torch.manual_seed(0)
    return kind(config(**{**SIZES, **changes})).eval()
