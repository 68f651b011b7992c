"""What a language model takes of GPU memory, by arithmetic on its ``config.json``: no weights read.

Everything is in bytes. What cannot be known is None; nothing here guesses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

# Decoders of Llama's shape: four attention matrices and a gated MLP of three a layer, nothing else
# of size. Models with experts have the same keys and many times the weights.
MODEL_TYPES = frozenset(
    ("gemma", "gemma2", "gemma3", "gemma3_text", "llama", "mistral", "qwen2", "qwen3")
)
# A process's CUDA context, cuBLAS's workspace and the libraries' kernels
CONTEXT_BYTES = 600_000_000
# Bytes of optimizer state a trained weight, by the first of these that the optimizer's name holds.
# Paged states can be moved to host memory, but while memory lasts they are on the device.
OPTIMIZER_BYTES = (
    ("ademamix_8bit", 3),
    ("ademamix", 12),
    ("lion_8bit", 1),
    ("lion", 4),
    ("rmsprop_bnb_8bit", 1),
    ("rmsprop", 4),
    ("adagrad", 4),
    ("schedule_free_sgd", 4),
    ("sgd", 0),
    ("adamw_torch_4bit", 1),
    ("8bit", 2),
)
ADAM_BYTES = 8
# Tile of the loss in TRL 1.15 (trl.kernels.chunked_logprob): tokens by vocabulary
TILE_TOKENS, TILE_VOCABULARY = 4096, 32_768

# of a vector in 8 bits, as ``ja_instruct.engine.kernels.int8_kv`` scales it
INT8_SCALE_BYTES = 4


@dataclass(frozen=True)
class ModelShape:
    """The sizes that memory follows from.

    Attributes:
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the gated MLP.
        query_size: Width of all query heads together.
        key_value_size: Width of all key heads together; the value heads' is the same.
        key_value_heads: How many of each.
        vocab_size: Rows of the embedding.
        is_tied: Whether the head is the embedding.
        windows: The attention window of each layer in tokens, None for full attention.
        is_logit_capped: Whether the logits pass through a tanh (Gemma 2).
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
    is_logit_capped: bool
    is_double_quantized: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape | None:
        """Return the shape that a ``config.json`` describes; None where it is another family's.

        Args:
            config: The file's content; of a multimodal checkpoint the language model's part
                (``text_config``) counts, its other parts are left out.
        """
        text = {**config, **config.get("text_config", {})}
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
            # a checkpoint leaves out what is its family's default
            is_tied=text.get("tie_word_embeddings", text["model_type"].startswith("gemma")),
            windows=_windows(text, layers),
            is_logit_capped=text.get("final_logit_softcapping") is not None,
            is_double_quantized=quantization.get("bnb_4bit_use_double_quant", True),
        )

    @property
    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """The matrices of one layer by name, as (inputs, outputs)."""
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
        """Weights that are quantized."""
        one_layer = sum(inputs * outputs for inputs, outputs in self.linear_layers.values())
        return len(self.windows) * one_layer

    @property
    def other_weights(self) -> int:
        """Weights that stay as they are: embedding, head, norms (four a layer, as in Gemma)."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.is_tied else 2)
        return embeddings + (4 * len(self.windows) + 1) * self.hidden_size

    @property
    def largest_matrix(self) -> int:
        """Weights of the largest matrix of a layer."""
        return max(inputs * outputs for inputs, outputs in self.linear_layers.values())


def _windows(text: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    """Return each layer's window; configurations before transformers 5 name no layer types."""
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
        # Qwen keeps a window in its configuration that it mostly does not use; full attention
        # there is the larger figure
        slides = [family == "mistral"] * layers
    return tuple(window if is_sliding else None for is_sliding in slides)


def nf4_bytes(shape: ModelShape, *, other_bytes: int = 2) -> int:
    """Return the bytes of the weights: matrices in NF4, the rest in ``other_bytes`` each.

    NF4 has a float32 constant for 64 weights; quantized in turn they cost 0.127 bits a weight
    (QLoRA, arXiv:2305.14314, section 3).
    """
    constant_bits = 0.127 if shape.is_double_quantized else 32 / 64
    quantized = shape.linear_weights * (4 + constant_bits) / 8
    return round(quantized) + shape.other_weights * other_bytes


def lora_weights(shape: ModelShape, target_modules: Sequence[str], rank: int) -> int | None:
    """Return how many weights an adapter has; None where a target is no matrix of a layer."""
    layers = shape.linear_layers
    names = {name.rsplit(".", maxsplit=1)[-1] for name in target_modules}
    if not names <= set(layers):
        return None
    return len(shape.windows) * sum(rank * sum(layers[name]) for name in names)


def optimizer_bytes(optim: str) -> int:
    """Return the bytes of state a trained weight, by transformers' name of the optimizer.

    A name that is not listed counts as Adam with float32 states.
    """
    return next((size for part, size in OPTIMIZER_BYTES if part in optim), ADAM_BYTES)


def vector_bytes(width: int, number_bytes: int, *, is_int8: bool) -> int:
    """Return what a head's key or value takes in a cache, in 8 bits or as it is computed."""
    return width + INT8_SCALE_BYTES if is_int8 else width * number_bytes


def kv_cache_bytes(shape: ModelShape, tokens: int, *, batch: int = 1) -> int:
    """Return the bytes of a bfloat16 cache of ``tokens`` a sequence; windows hold no more."""
    kept = sum(min(tokens, window or tokens) for window in shape.windows)
    return batch * kept * 2 * shape.key_value_size * 2


def quantization_parts(
    shape: ModelShape, *, compute_bytes: int, double_quantization: bool
) -> dict[str, int]:
    """Return the peak of quantizing a model as it is loaded, matrix by matrix, by its parts.

    Args:
        shape: The 16-bit model's.
        compute_bytes: Bytes of a weight as it is read, and of those that stay.
        double_quantization: Whether NF4's constants are quantized too.
    """
    quantized = replace(shape, is_double_quantized=double_quantization)
    return {
        "weights": nf4_bytes(quantized, other_bytes=compute_bytes),
        # as it is read, and the contiguous copy that is quantized; the embedding is among the
        # weights already
        "matrix in flight": 2 * shape.largest_matrix * compute_bytes,
        "cuda context": CONTEXT_BYTES,
    }


@dataclass(frozen=True)
class Training:
    """What training's memory follows from.

    Attributes:
        tokens: Of one batch: its samples times their length.
        rank: LoRA's.
        target_modules: The adapted matrices.
        optim: transformers' name of the optimizer.
        gradient_checkpointing: Whether a layer's activations are computed again for its gradients.
        backend: ``unsloth`` computes in bfloat16, keeps checkpoints in host memory and the loss in
            pieces. ``peft`` keeps embedding and residual stream in float32, where
            ``prepare_model_for_kbit_training`` puts them.
        loss: ``tiled`` as TRL 1.15 computes it, or ``whole`` logits, as a transformers model
            itself does.
    """

    tokens: int
    rank: int
    target_modules: tuple[str, ...]
    optim: str
    gradient_checkpointing: bool
    backend: Literal["unsloth", "peft"]
    loss: Literal["tiled", "whole"] = "tiled"


def training_parts(shape: ModelShape, training: Training) -> dict[str, int] | None:
    """Return the peak of a QLoRA training step by its parts; None for unknown target modules.

    The peak is either in the loss, when the gradients of no layer are there yet, or in the last
    layer's gradients, when the logits are gone; the larger of the two counts.
    """
    adapter = lora_weights(shape, training.target_modules, training.rank)
    if adapter is None:
        return None
    stream_bytes = 2 if training.backend == "unsloth" else 4
    kept, passing = _layer_activations(shape, training.tokens, stream_bytes)
    layers = len(shape.windows)
    if not training.gradient_checkpointing:
        held, at_layer = layers * kept, passing
    else:
        checkpoint = training.tokens * shape.hidden_size * stream_bytes
        # unsloth's are on their way to host memory, one behind the other
        held = checkpoint * (2 if training.backend == "unsloth" else layers)
        at_layer = kept + passing
    at_loss = _loss_bytes(shape, training)
    return {
        "weights": nf4_bytes(shape, other_bytes=stream_bytes),
        # float32; TRL 1.15 makes them bfloat16 on the peft backend, which leaves room for what
        # the allocator cannot use
        "lora": 4 * adapter,
        "gradients": 4 * adapter,
        "optimizer": optimizer_bytes(training.optim) * adapter,
        "activations": held + (at_layer if at_layer >= at_loss else 0),
        "logits": at_loss if at_loss > at_layer else 0,
        "cuda context": CONTEXT_BYTES,
    }


def _layer_activations(shape: ModelShape, tokens: int, stream_bytes: int) -> tuple[int, int]:
    """Return what one layer keeps for its gradients, and what passes by while they are computed.

    bitsandbytes' matrices return the type that they are given, so that of the residual stream,
    after computing in bfloat16.
    """
    wide = tokens * shape.intermediate_size
    kept = (
        # gate before and after its activation function, up; their product for LoRA's gradient
        wide * (3 * stream_bytes + 2)
        # four norms with input and output, the residuals
        + 10 * tokens * shape.hidden_size * stream_bytes
        # queries, keys, values and the result, before and after rotation
        + 4 * tokens * (shape.query_size + shape.key_value_size) * stream_bytes
    )
    # the gradients of the three wide tensors, and a matrix dequantized
    return kept, 3 * wide * stream_bytes + 2 * shape.largest_matrix


def _loss_bytes(shape: ModelShape, training: Training) -> int:
    if training.backend == "unsloth" or training.loss == "tiled":
        tokens = min(training.tokens, TILE_TOKENS)
        columns = min(shape.vocab_size, TILE_VOCABULARY)
        # logits of the tile, the head's rows for it, the gradient of the hidden states
        return 2 * columns * (tokens + shape.hidden_size) + 4 * training.tokens * shape.hidden_size
    # bfloat16 logits, and in float32 a copy, its log-softmax and the gradient; a cap keeps the
    # bfloat16 tanh too
    copies = 4 * 3 + 2 * (2 if shape.is_logit_capped else 1)
    return training.tokens * shape.vocab_size * copies


def inference_parts(
    shape: ModelShape, tokens: int, *, adapter_weights: int = 0, batch: int = 1
) -> dict[str, int]:
    """Return the peak of generating with a 4-bit model by its parts: that of the prompt's pass.

    Args:
        shape: The model's.
        tokens: Prompt and answer of one sequence together.
        adapter_weights: Weights of an adapter that is not merged, kept in float32.
        batch: Sequences at a time.
    """
    return {
        "weights": nf4_bytes(shape),
        "lora": 4 * adapter_weights,
        "kv_cache": kv_cache_bytes(shape, tokens, batch=batch),
        "activations": batch * tokens * 2 * (4 * shape.intermediate_size + 8 * shape.hidden_size)
        + 2 * shape.largest_matrix,
        # of the last position alone, in bfloat16, in float32, and as the processors change them
        "logits": batch * shape.vocab_size * (2 + 4 + 4),
        "cuda context": CONTEXT_BYTES,
    }
