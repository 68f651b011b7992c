"""What answering needs of the GPU, from the model's configuration and the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ja_instruct.gpu_need import memory, model_shape_of, parameters_of
from ja_instruct.model_memory import ModelShape, inference_parts, lora_weights

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol
    from kedro.pipeline.node import Node


def estimate_inference(node: Node, catalog: CatalogProtocol[Any, Any]) -> dict[str, Any]:
    """Return devices, peak memory with its parts and remedy, as ``needs_gpu`` takes them.

    One prompt at a time, up to ``max_seq_length`` with its answer. A node that takes an
    ``adapter`` holds it unmerged; its size follows from the section ``sft`` of the same catalog.
    Memory is left out where neither ``quantized_model`` nor ``base_model`` has a configuration
    yet, or where nothing says how large the adapter is.
    """
    section, parameters = parameters_of(node, catalog, "inference")
    if parameters.device == "cpu":
        return {"devices": 0}
    need: dict[str, Any] = {
        "devices": 1,
        "remedy": (
            f"lower {section}.max_seq_length (now {parameters.max_seq_length}) or "
            f"{section}.top_k (now {parameters.top_k})"
        ),
    }
    shape = model_shape_of(node, catalog)
    adapter = _adapter_weights(node, catalog, shape) if shape is not None else None
    if shape is None or adapter is None:
        return need
    parts = inference_parts(shape, parameters.max_seq_length, adapter_weights=adapter)
    return {**need, **memory(parts)}


def _adapter_weights(
    node: Node, catalog: CatalogProtocol[Any, Any], shape: ModelShape
) -> int | None:
    name = next((name for name in node.inputs if name.rsplit(".")[-1] == "adapter"), None)
    if name is None:
        return 0
    section = f"params:{name.removesuffix('adapter')}sft"
    section = section if section in catalog else "params:sft"
    if section not in catalog:
        return None
    sft = catalog.load(section)
    # a section that no node of this run takes is not typed
    lora = sft["lora"] if isinstance(sft, Mapping) else sft.lora.model_dump()
    return lora_weights(shape, lora["target_modules"], lora["lora_r"])
