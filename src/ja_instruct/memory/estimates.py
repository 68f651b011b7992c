"""The memory of a language model, in bytes, computed from its ``config.json`` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ja_instruct.models.text_model import text_settings

# Llama-like decoders: a layer has four attention matrices, a gated MLP of three, and nothing else
# of size. Mixtures of experts have the same keys and many times the weights.
MODEL_TYPES = frozenset(
    (
        *("gemma", "gemma2", "gemma3", "gemma3_text", "llama", "mistral", "qwen2", "qwen3"),
        # the language models of multimodal checkpoints, and older files that have its keys beside
        # those of the other parts
        *("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "qwen2_vl", "qwen2_5_vl"),
    )
)
# A process's CUDA context, cuBLAS's workspace and the libraries' kernels
CONTEXT_BYTES = 600_000_000
# The scale of a vector in int8 (``ja_instruct.engine.kernels.int8_kv``)
INT8_SCALE_BYTES = 4


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that determine its memory.

    Attributes:
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the gated MLP.
        query_size: Width of all query heads together.
        key_value_size: Width of all key heads together, equal to that of all value heads.
        key_value_heads: Number of key heads, equal to that of value heads.
        vocab_size: Rows of the embedding.
        is_tied: Whether the output head shares the embedding's weights.
        windows: The attention window of each layer in tokens; None for full attention.
        is_double_quantized: Whether NF4's constants are quantized too.
    """

    hidden_size: int
    intermediate_size: int
    query_size: int
    key_value_size: int
    key_value_heads: int
    vocab_size: int
    is_tied: bool
    windows: tuple[int | None, ...]
    is_double_quantized: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape | None:
        """Return the shape that a ``config.json`` describes; None for an unknown family.

        Args:
            config: The file's content. In a multimodal checkpoint the language model
                (``text_config``) counts and the other parts do not.
        """
        text = text_settings(config)
        wanted = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        sizes = [text.get(key) for key in (*wanted, "num_key_value_heads", "vocab_size")]
        if text.get("model_type") not in MODEL_TYPES or not all(
            isinstance(size, int) and size > 0 for size in sizes
        ):
            return None
        hidden, intermediate, layers, heads, kv_heads, vocabulary = map(int, filter(None, sizes))
        head = text.get("head_dim") or hidden // heads
        quantization = config.get("quantization_config") or {}
        return cls(
            hidden_size=hidden,
            intermediate_size=intermediate,
            query_size=heads * head,
            key_value_size=kv_heads * head,
            key_value_heads=kv_heads,
            vocab_size=vocabulary,
            # a checkpoint omits its family's default
            is_tied={**text, **config}.get(
                "tie_word_embeddings", text["model_type"].startswith("gemma")
            ),
            windows=_windows(text, layers),
            is_double_quantized=quantization.get("bnb_4bit_use_double_quant", True),
        )

    @property
    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """The matrices of one layer as (inputs, outputs), by name."""
        hidden, wide = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (hidden, self.query_size),
            "k_proj": (hidden, self.key_value_size),
            "v_proj": (hidden, self.key_value_size),
            "o_proj": (self.query_size, hidden),
            "gate_proj": (hidden, wide),
            "up_proj": (hidden, wide),
            "down_proj": (wide, hidden),
        }

    @property
    def linear_weights(self) -> int:
        """Number of weights in the layers' matrices, which are quantized."""
        one_layer = sum(inputs * outputs for inputs, outputs in self.linear_layers.values())
        return len(self.windows) * one_layer

    @property
    def other_weights(self) -> int:
        """Number of other weights: embedding, head, norms (four per layer, as in Gemma)."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.is_tied else 2)
        return embeddings + (4 * len(self.windows) + 1) * self.hidden_size

    @property
    def weights(self) -> int:
        """Number of all weights."""
        return self.linear_weights + self.other_weights

    @property
    def largest_matrix(self) -> int:
        """Number of weights in the largest matrix of a layer."""
        return max(inputs * outputs for inputs, outputs in self.linear_layers.values())


def _windows(text: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    """Return the window of each layer; configurations before transformers 5 omit layer types."""
    window, family = text.get("sliding_window"), text["model_type"]
    if not window:
        return (None,) * layers
    if text.get("layer_types"):
        slides = [kind == "sliding_attention" for kind in text["layer_types"]]
    elif family == "gemma2":
        slides = [layer % 2 == 0 for layer in range(layers)]
    elif family.startswith("gemma3"):
        pattern = text.get("sliding_window_pattern") or text.get("_sliding_window_pattern") or 6
        slides = [(layer + 1) % pattern != 0 for layer in range(layers)]
    else:
        # Qwen's configuration has a window that most of its models do not use; full attention
        # needs more memory
        slides = [family == "mistral"] * layers
    return tuple(window if is_sliding else None for is_sliding in slides)


def nf4_bytes(shape: ModelShape, *, other_bytes: int = 2) -> int:
    """Return the size of a model with its matrices in NF4.

    NF4 has a float32 constant per 64 weights. Double quantization reduces the constants to 0.127
    bits per weight (QLoRA, arXiv:2305.14314, section 3).

    Args:
        shape: The model's.
        other_bytes: Bytes of every other weight.
    """
    constant_bits = 0.127 if shape.is_double_quantized else 32 / 64
    quantized = shape.linear_weights * (4 + constant_bits) / 8
    return round(quantized) + shape.other_weights * other_bytes


def lora_weights(shape: ModelShape, target_modules: Sequence[str], rank: int) -> int | None:
    """Return the number of an adapter's weights; None if a target is not a matrix of a layer."""
    layers = shape.linear_layers
    names = {name.rsplit(".", maxsplit=1)[-1] for name in target_modules}
    if not names <= set(layers):
        return None
    return len(shape.windows) * sum(rank * sum(layers[name]) for name in names)


def vector_bytes(width: int, number_bytes: int, *, is_int8: bool) -> int:
    """Return the size of one head's key or value in a KV cache.

    Args:
        width: Numbers in the vector.
        number_bytes: Bytes of a number that is not quantized.
        is_int8: Whether the vector is in int8, with a scale.
    """
    return width + INT8_SCALE_BYTES if is_int8 else width * number_bytes


def kv_cache_bytes(shape: ModelShape, tokens: int) -> int:
    """Return the size of a bfloat16 KV cache for a sequence of ``tokens`` tokens."""
    cached = sum(min(tokens, window or tokens) for window in shape.windows)
    return cached * 2 * shape.key_value_size * 2


def cpu_memory_bytes(parameter_count: int) -> int:
    """Return the host memory that a stage takes with a model on the CPU.

    That is float32 weights and half as much for copies, then activations, logits and libraries;
    the demo's peak was 5.9 GB.
    """
    return parameter_count * 6 + 4_000_000_000
