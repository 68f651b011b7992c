"""GPU memory and disk that the nodes of ``quantization`` take, from the model's configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ja_instruct.memory.estimates import CONTEXT_BYTES, ModelShape, nf4_bytes
from ja_instruct.memory.resources import memory, model_shape_of, parameter_count_of, parameters_of
from ja_instruct.pipelines.quantization.perplexity import LOGIT_POSITIONS, TEXT_TOKENS

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol
    from kedro.pipeline.node import Node

    from ja_instruct.pipelines.quantization.parameters import QuantizationParameters

# 4-bit matrices, 16-bit embeddings, tokenizer
DISK_BYTES_PER_WEIGHT = 1.5
# the narrowest heads of the known families, so the largest number of heads
HEAD_SIZE = 64


def estimate_quantization(node: Node, catalog: CatalogProtocol[Any, Any]) -> dict[str, Any]:
    """Estimate devices, peak memory, disk and remedy of ``quantize`` for ``gpu_resources``.

    Memory is missing if the base model's configuration is not available, disk if its number of
    weights is not either.
    """
    section, parameters = parameters_of(node, catalog, "quantization")
    shape = model_shape_of(node, catalog)
    weights = shape.weights if shape is not None else parameter_count_of(node, catalog)
    disk = {} if weights is None else {"disk_gb": DISK_BYTES_PER_WEIGHT * weights / 1e9}
    if parameters.device == "cpu":
        return {"devices": 0, **disk}
    remedy = f"choose a smaller base_model, or set {section}.device to cpu"
    parts = None if shape is None else quantization_parts(shape, parameters)
    return {"devices": 1, "remedy": remedy, **memory(parts), **disk}


def estimate_measurement(node: Node, catalog: CatalogProtocol[Any, Any]) -> dict[str, Any]:
    """Estimate devices, peak memory and remedy of ``measure_quantization``."""
    section, parameters = parameters_of(node, catalog, "quantization")
    if parameters.device == "cpu":
        return {"devices": 0}
    shape = model_shape_of(node, catalog)
    remedy = f"set {section}.perplexity_max_tokens to 0, or {section}.device to cpu"
    parts = None if shape is None else measurement_parts(shape, parameters)
    return {"devices": 1, "remedy": remedy, **memory(parts)}


def quantization_parts(shape: ModelShape, parameters: QuantizationParameters) -> dict[str, int]:
    """Return the peak memory of quantizing a model while it is loaded, in bytes, by part."""
    load_bytes, compute_bytes = (
        4 if dtype == "float32" else 2
        for dtype in (parameters.load_dtype, parameters.compute_dtype)
    )
    quantized = replace(shape, is_double_quantized=parameters.double_quantization)
    embedding = shape.vocab_size * shape.hidden_size
    return {
        "weights": nf4_bytes(quantized, other_bytes=max(load_bytes, compute_bytes)),
        # as it is read, and the contiguous copy that is quantized; the embedding is among the
        # weights already
        "matrix in flight": max(
            2 * shape.largest_matrix * load_bytes,
            # types of the same size are cast in place
            min(load_bytes, compute_bytes) * embedding * (load_bytes != compute_bytes),
        ),
        "cuda context": CONTEXT_BYTES,
    }


def measurement_parts(shape: ModelShape, parameters: QuantizationParameters) -> dict[str, int]:
    """Return the peak memory of comparing matrices and predictions, in bytes, by part.

    The pass of the base model holds its embedding, its head and one layer; the pass of the 4-bit
    model holds all of it. The larger of the two counts.
    """
    size = 2  # bfloat16
    parts = {
        # as stored, and in float32 the original, the dequantized and their difference
        "weights": 4 * 4 * shape.largest_matrix,
        "cuda context": CONTEXT_BYTES,
    }
    total = parameters.perplexity_max_tokens
    if not total:
        return parts
    quantized = replace(shape, is_double_quantized=parameters.double_quantization)
    one_layer = shape.linear_weights // len(shape.windows)
    # a matrix as it is stored, in float32 at most: of a layer, or before that the embedding
    streamed = size * shape.other_weights + max(
        size * one_layer + 4 * shape.largest_matrix, 4 * shape.vocab_size * shape.hidden_size
    )
    resident = nf4_bytes(quantized, other_bytes=size) + size * shape.largest_matrix
    tokens = min(total, TEXT_TOKENS)
    heads = shape.query_size // HEAD_SIZE
    return {
        **parts,
        "weights": max(parts["weights"], streamed, resident),
        "activations": 2 * total * shape.hidden_size * size
        + tokens * size * (4 * shape.intermediate_size + 8 * shape.hidden_size)
        # scores, and their softmax in float32
        + tokens * tokens * heads * (2 * size + 4),
        # as computed, capped and divided, then in float32 with their log-softmax
        "logits": LOGIT_POSITIONS * shape.vocab_size * (3 * size + 2 * 4),
    }
