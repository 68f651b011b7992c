"""GPU memory and disk that ``train`` takes, from the model's configuration and the parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ja_instruct.memory.estimates import CONTEXT_BYTES, ModelShape, lora_weights, nf4_bytes
from ja_instruct.memory.resources import memory, model_shape_of, parameters_of

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol
    from kedro.pipeline.node import Node

    from ja_instruct.pipelines.sft.parameters import SftParameters

# Bytes of optimizer state per trained weight, by the first of these parts found in the optimizer's
# name. Paged states can move to host memory, but stay on the device while there is room.
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


def estimate_training(node: Node, catalog: CatalogProtocol[Any, Any]) -> dict[str, Any]:
    """Estimate devices, peak memory, disk and remedy of ``train`` for ``gpu_resources``.

    The batch is ``tokens_per_batch`` tokens, or samples of ``max_seq_length`` tokens each. If
    ``auto_find_batch_size`` may halve it, ``memory_min_gb`` is the peak with one sample. Memory
    and disk are missing if the model's configuration is not available yet, or if an adapted module
    is not a matrix of its layers.
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
    parts = training_parts(shape, parameters, training.tokens_per_batch or batch, adapter)
    if training.auto_find_batch_size and parameters.gpu.devices in (None, 1):
        least = training_parts(shape, parameters, parameters.max_seq_length, adapter)
        resources["memory_min_gb"] = sum(least.values()) / 1e9
    checkpoint = (4 + optimizer_bytes(training.optim)) * adapter
    kept = 0 if training.save_strategy == "no" else training.save_total_limit
    return {**resources, **memory(parts), "disk_gb": (4 * adapter + kept * checkpoint) / 1e9}


def _remedy(section: str, parameters: SftParameters) -> str:
    training = parameters.training
    ways = []
    if training.tokens_per_batch is not None:
        if training.tokens_per_batch > parameters.max_seq_length:
            ways.append(
                f"lower {section}.training.tokens_per_batch (now {training.tokens_per_batch}; the "
                f"optimizer's batch stays the same)"
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


def optimizer_bytes(optim: str) -> int:
    """Return the bytes of optimizer state per trained weight; an unknown optimizer is Adam's."""
    return next((size for part, size in OPTIMIZER_BYTES if part in optim), ADAM_BYTES)


def training_parts(
    shape: ModelShape, parameters: SftParameters, tokens: int, adapter_weights: int
) -> dict[str, int]:
    """Return the peak memory of a QLoRA step in bytes, by part.

    The peak is either in the loss, before any layer has gradients, or in the gradients of the last
    layer, after the logits are freed. The larger of the two counts. The backend ``unsloth``
    computes in bfloat16 and keeps checkpoints in host memory. ``peft`` keeps embedding and residual
    stream in float32, as ``prepare_model_for_kbit_training`` does.
    """
    is_unsloth = parameters.backend == "unsloth"
    stream_bytes = 2 if is_unsloth else 4
    kept, temporary = _layer_activations(shape, tokens, stream_bytes)
    layers = len(shape.windows)
    if not parameters.training.gradient_checkpointing:
        held, at_layer = layers * kept, temporary
    else:
        # unsloth moves its checkpoints to host memory: two are on the device at a time
        checkpoints = 2 if is_unsloth else layers
        held = checkpoints * tokens * shape.hidden_size * stream_bytes
        at_layer = kept + temporary
    columns = min(shape.vocab_size, TILE_VOCABULARY)
    # the tile's logits, the head's rows for it, the gradient of the hidden states
    tile = 2 * columns * (min(tokens, TILE_TOKENS) + shape.hidden_size)
    at_loss = tile + 4 * tokens * shape.hidden_size
    return {
        "weights": nf4_bytes(shape, other_bytes=stream_bytes),
        # In float32. With peft, TRL 1.15 casts them to bfloat16, which leaves room for the
        # allocator's fragmentation.
        "lora": 4 * adapter_weights,
        "gradients": 4 * adapter_weights,
        "optimizer": optimizer_bytes(parameters.training.optim) * adapter_weights,
        "activations": held + (at_layer if at_layer >= at_loss else 0),
        "logits": at_loss if at_loss > at_layer else 0,
        "cuda context": CONTEXT_BYTES,
    }


def _layer_activations(shape: ModelShape, tokens: int, stream_bytes: int) -> tuple[int, int]:
    """Return what one layer keeps for its gradients, and what it needs while computing them.

    bitsandbytes' matrices compute in bfloat16 and return the type of their input, which is that of
    the residual stream.
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
    # the gradients of the three wide tensors, and one dequantized matrix
    return kept, 3 * wide * stream_bytes + 2 * shape.largest_matrix
