"""GPU memory that answering takes, from the model's configuration and the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ja_instruct.engine.batch_size import EngineSizes
from ja_instruct.engine.vllm import require_vllm
from ja_instruct.memory.estimates import (
    CONTEXT_BYTES,
    ModelShape,
    kv_cache_bytes,
    lora_weights,
    nf4_bytes,
)
from ja_instruct.memory.resources import memory, model_shape_of, parameters_of

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol
    from kedro.pipeline.node import Node

    from ja_instruct.pipelines.inference.parameters import InferenceParameters

# Per 64 weights in 4 bits, the scale that ``ja_instruct.engine.kernels.nf4_matmul`` keeps beside
# bitsandbytes' own
KERNEL_SCALE_BYTES = 2


def estimate_inference(node: Node, catalog: CatalogProtocol[Any, Any]) -> dict[str, Any]:
    """Estimate devices, peak memory and remedy of answering for ``gpu_resources``.

    A prompt and its answer have up to ``max_seq_length`` tokens. ``one_by_one`` takes the memory of
    one prompt. ``batched`` uses all memory that it gets: ``memory_gb`` of its section, or the whole
    device; only the memory of one prompt is known, ``memory_min_gb``.

    A node with an ``adapter`` holds it too; its size follows from the section ``sft`` of the same
    catalog. Memory is missing if the model's configuration is not available yet, or if the size of
    the adapter is unknown.

    Raises:
        InputError: The backend is vLLM, which is not installed.
    """
    section, parameters = parameters_of(node, catalog, "inference")
    if parameters.device == "cpu":
        return {"devices": 0}
    if parameters.backend == "vllm":
        require_vllm()
    resources: dict[str, Any] = {"devices": 1, "remedy": _remedy(section, parameters)}
    shape = model_shape_of(node, catalog)
    adapter = _adapter_weights(node, catalog, shape) if shape is not None else None
    if shape is None or adapter is None:
        return resources
    if parameters.engine == "one_by_one":
        return {**resources, **memory(_one_by_one_parts(shape, parameters.max_seq_length, adapter))}
    least = memory(_batched_parts(shape, parameters, adapter))
    resources |= {"memory_min_gb": least["memory_gb"], "parts_gb": least["parts_gb"]}
    limit = parameters.batching.memory_gb
    if limit is not None:
        resources["memory_gb"] = max(limit + CONTEXT_BYTES / 1e9, least["memory_gb"])
    return resources


def _remedy(section: str, parameters: InferenceParameters) -> str:
    shorter = (
        f"lower {section}.max_seq_length (now {parameters.max_seq_length}) or "
        f"{section}.top_k (now {parameters.top_k})"
    )
    if parameters.engine != "batched":
        return shorter
    smaller = []
    if parameters.batching.weights == "bf16":
        smaller.append("weights to nf4")
    if parameters.backend != "vllm" and not parameters.batching.has_int8_cache:
        smaller.append("kv_cache_dtype to int8")
    return ", or ".join([*(f"set {section}.batching.{one}" for one in smaller), shorter])


def _one_by_one_parts(shape: ModelShape, tokens: int, adapter_weights: int) -> dict[str, int]:
    """Return the memory of the 4-bit model in the forward pass of a prompt.

    The adapter is in float32 and not merged.
    """
    return {
        "weights": nf4_bytes(shape),
        "lora": 4 * adapter_weights,
        "kv_cache": kv_cache_bytes(shape, tokens),
        "activations": tokens * 2 * (4 * shape.intermediate_size + 8 * shape.hidden_size)
        + 2 * shape.largest_matrix,
        # of the last position, in bfloat16, in float32, and as the logits processors change them
        "logits": shape.vocab_size * (2 + 4 + 4),
        "cuda context": CONTEXT_BYTES,
    }


def _batched_parts(
    shape: ModelShape, parameters: InferenceParameters, adapter_weights: int
) -> dict[str, int]:
    """Return the memory of the engine with one sequence."""
    is_merged = parameters.batching.weights == "bf16"
    int8_cache = parameters.batching.has_int8_cache
    sizes, length = EngineSizes.of_shape(shape, int8_cache=int8_cache), parameters.max_seq_length
    cache = sizes.cache_bytes(1, length)
    prefill = sizes.prefill_chunk_size(parameters.batching.prefill_chunk_size, 0, length)
    working = sizes.working_bytes(prefill, length)
    weights = nf4_bytes(shape)
    if is_merged:
        weights = 2 * shape.weights
    elif parameters.backend == "vllm":
        # its plugin undoes the double quantization while loading
        weights = nf4_bytes(replace(shape, is_double_quantized=False))
    else:
        weights += KERNEL_SCALE_BYTES * shape.linear_weights // 64
    return {
        "weights": weights,
        # merged in float32
        "lora": (4 if is_merged else 2) * adapter_weights,
        "kv_cache": cache,
        "activations": working + sizes.sequence_bytes(length) - cache,
        "cuda context": CONTEXT_BYTES,
    }


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
    # a section that no node of this run uses is a plain dictionary
    lora = sft["lora"] if isinstance(sft, Mapping) else sft.lora.model_dump()
    return lora_weights(shape, lora["target_modules"], lora["lora_r"])
