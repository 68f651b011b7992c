"""What the nodes of ``quantization`` need of the GPU, from the base model's configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ja_instruct.memory.estimates import CONTEXT_BYTES, ModelShape, nf4_bytes, quantization_parts
from ja_instruct.memory.resources import memory, model_shape_of, parameters_of
from ja_instruct.pipelines.quantization.perplexity import LOGIT_POSITIONS, TEXT_TOKENS

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol
    from kedro.pipeline.node import Node

    from ja_instruct.pipelines.quantization.parameters import QuantizationParameters

# 4-bit matrices, 16-bit embeddings, tokenizer
DISK_BYTES_PER_WEIGHT = 1.5
# of the known families none has narrower heads, so none has more of them
HEAD_SIZE = 64


def estimate_quantization(node: Node, catalog: CatalogProtocol[Any, Any]) -> dict[str, Any]:
    """Return devices, peak memory with its parts, disk and remedy, as ``gpu_resources`` takes them.

    Without the base model's configuration, such as while the hub is out of reach, memory and disk
    are left out.
    """
    section, parameters = parameters_of(node, catalog, "quantization")
    if parameters.device == "cpu":
        return {"devices": 0}
    resources: dict[str, Any] = {
        "devices": 1,
        "remedy": f"choose a smaller base_model, or set {section}.device to cpu",
    }
    shape = model_shape_of(node, catalog)
    if shape is None:
        return resources
    parts = quantization_parts(
        shape,
        compute_bytes=_compute_bytes(parameters),
        double_quantization=parameters.double_quantization,
    )
    weights = shape.linear_weights + shape.other_weights
    return {**resources, **memory(parts), "disk_gb": DISK_BYTES_PER_WEIGHT * weights / 1e9}


def estimate_measurement(node: Node, catalog: CatalogProtocol[Any, Any]) -> dict[str, Any]:
    """Return what ``measure_quantization`` needs, in the same form."""
    section, parameters = parameters_of(node, catalog, "quantization")
    if parameters.device == "cpu":
        return {"devices": 0}
    resources: dict[str, Any] = {
        "devices": 1,
        "remedy": f"set {section}.perplexity_max_tokens to 0, or {section}.device to cpu",
    }
    shape = model_shape_of(node, catalog)
    return (
        resources
        if shape is None
        else {**resources, **memory(measurement_parts(shape, parameters))}
    )


def measurement_parts(shape: ModelShape, parameters: QuantizationParameters) -> dict[str, int]:
    """Return the peak of comparing matrices and predictions, by its parts in bytes.

    The base model's pass holds its embedding, its head and one layer; that of the 4-bit model
    all of it. The larger of the two counts.
    """
    size = 2  # bfloat16
    parts = {
        # as stored, and as float32 the original, the dequantized and their difference
        "weights": 4 * 4 * shape.largest_matrix,
        "cuda context": CONTEXT_BYTES,
    }
    total = parameters.perplexity_max_tokens
    if not total:
        return parts
    quantized = replace(shape, is_double_quantized=parameters.double_quantization)
    one_layer = shape.linear_weights // len(shape.windows)
    # a matrix as it is read, in float32 at most
    streamed = size * (shape.other_weights + one_layer) + 4 * shape.largest_matrix
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
        # as computed, bounded and divided, then in float32 with their log-softmax
        "logits": LOGIT_POSITIONS * shape.vocab_size * (3 * size + 2 * 4),
    }


def _compute_bytes(parameters: QuantizationParameters) -> int:
    return 4 if parameters.compute_dtype == "float32" else 2
