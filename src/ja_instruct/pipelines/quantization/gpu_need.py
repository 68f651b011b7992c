"""What ``quantize`` needs of the GPU, from the base model's configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ja_instruct.gpu_need import memory, model_shape_of, parameters_of
from ja_instruct.model_memory import quantization_parts

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol
    from kedro.pipeline.node import Node

# 4-bit matrices, 16-bit embeddings, tokenizer
DISK_BYTES_PER_WEIGHT = 1.5


def estimate_quantization(node: Node, catalog: CatalogProtocol[Any, Any]) -> dict[str, Any]:
    """Return devices, peak memory with its parts, disk and remedy, as ``needs_gpu`` takes them.

    Without the base model's configuration, such as while the hub is out of reach, memory and disk
    are left out.
    """
    section, parameters = parameters_of(node, catalog, "quantization")
    if parameters.device == "cpu":
        return {"devices": 0}
    need: dict[str, Any] = {
        "devices": 1,
        "remedy": f"choose a smaller base_model, or set {section}.device to cpu",
    }
    shape = model_shape_of(node, catalog)
    if shape is None:
        return need
    parts = quantization_parts(
        shape,
        compute_bytes=4 if parameters.compute_dtype == "float32" else 2,
        double_quantization=parameters.double_quantization,
    )
    weights = shape.linear_weights + shape.other_weights
    return {**need, **memory(parts), "disk_gb": DISK_BYTES_PER_WEIGHT * weights / 1e9}
