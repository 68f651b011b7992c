"""What ``train`` needs of the GPUs, from the model's configuration and the parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ja_instruct.memory.estimates import Training, lora_weights, optimizer_bytes, training_parts
from ja_instruct.memory.resources import memory, model_shape_of, parameters_of

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol
    from kedro.pipeline.node import Node

    from ja_instruct.pipelines.sft.parameters import SftParameters


def estimate_training(node: Node, catalog: CatalogProtocol[Any, Any]) -> dict[str, Any]:
    """Return devices, peak memory with its parts, disk and remedy, as ``gpu_resources`` takes them.

    The batch is counted whole: ``tokens_per_batch``, or every sample ``max_seq_length`` long. Where
    ``auto_find_batch_size`` may halve it, ``memory_min_gb`` is that of one sample. Memory and disk
    are left out where neither ``quantized_model`` nor ``base_model`` has a configuration yet, or
    where an adapted module is none of its matrices.
    """
    section, parameters = parameters_of(node, catalog, "sft")
    if parameters.device == "cpu":
        return {"devices": 0}
    resources: dict[str, Any] = {
        "devices": parameters.gpu.devices or 1,
        "remedy": _remedy(section, parameters),
    }
    shape = model_shape_of(node, catalog)
    if shape is None:
        return resources
    adapter = lora_weights(shape, parameters.lora.target_modules, parameters.lora.lora_r)
    if adapter is None:
        return resources
    training = parameters.training
    batch = training.per_device_train_batch_size * parameters.max_seq_length
    parts = training_parts(shape, _workload(parameters, training.tokens_per_batch or batch))
    least = training_parts(shape, _workload(parameters, parameters.max_seq_length))
    if training.auto_find_batch_size and parameters.gpu.devices in (None, 1) and least is not None:
        resources["memory_min_gb"] = sum(least.values()) / 1e9
    checkpoint = (4 + optimizer_bytes(training.optim)) * adapter
    kept = 0 if training.save_strategy == "no" else training.save_total_limit
    return {**resources, **memory(parts), "disk_gb": (4 * adapter + kept * checkpoint) / 1e9}


def _workload(parameters: SftParameters, tokens: int) -> Training:
    return Training(
        tokens=tokens,
        rank=parameters.lora.lora_r,
        target_modules=parameters.lora.target_modules,
        optim=parameters.training.optim,
        gradient_checkpointing=parameters.training.gradient_checkpointing,
        backend=parameters.backend,
    )


def _remedy(section: str, parameters: SftParameters) -> str:
    training = parameters.training
    ways = []
    if training.tokens_per_batch is not None:
        if training.tokens_per_batch > parameters.max_seq_length:
            ways.append(
                f"lower {section}.training.tokens_per_batch (now {training.tokens_per_batch}; the "
                f"optimizer's batch stays as it is)"
            )
    elif training.per_device_train_batch_size > 1:
        ways.append(
            f"lower {section}.training.per_device_train_batch_size (now "
            f"{training.per_device_train_batch_size}) and raise gradient_accumulation_steps as much"
        )
    ways.append(f"lower {section}.max_seq_length (now {parameters.max_seq_length})")
    ways.append(f"lower {section}.lora.lora_r (now {parameters.lora.lora_r})")
    if not training.gradient_checkpointing:
        ways.append(f"set {section}.training.gradient_checkpointing to true")
    if "8bit" not in training.optim:
        ways.append(f"set {section}.training.optim to adamw_8bit")
    if parameters.backend == "peft":
        ways.append(f"set {section}.backend to unsloth")
    return ", or ".join(ways)
