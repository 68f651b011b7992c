"""The weights that the engine computes with: 16-bit with the adapter merged, or 4-bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from ja_instruct.models.directory import ModelDirectory


def merge_in_bf16(model: PreTrainedModel, adapter: ModelDirectory | None) -> PreTrainedModel:
    """Change a 4-bit model to bfloat16 with the adapter merged into its matrices, and return it.

    Each sum W + scaling · B A, of the weights that the 4-bit model computes with, is computed in
    float32 and rounded once.
    """
    return merge_adapter(dequantize_model(model, torch.bfloat16), adapter)


def dequantize_model(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Replace the 4-bit matrices of a model, one after the other, and return it.

    transformers' own ``dequantize`` computes each matrix twice and keeps all 4-bit matrices until
    the last is done: 14 GB of gemma-2-27b beside the resulting 54 GB. Here only one matrix at a
    time exists in both forms.
    """
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn.modules import Linear4bit

    names = [name for name, layer in model.named_modules() if isinstance(layer, Linear4bit)]
    for name in names:
        layer: Any = model.get_submodule(name)
        plain = torch.nn.Linear(
            layer.in_features, layer.out_features, layer.bias is not None, device="meta"
        )
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(dtype)
        plain.weight = torch.nn.Parameter(weight, requires_grad=False)
        if layer.bias is not None:
            plain.bias = torch.nn.Parameter(layer.bias.data.to(dtype), requires_grad=False)
        model.set_submodule(name, plain)
    plain_model: Any = model
    plain_model.hf_quantizer.remove_quantization_config(model)
    # PEFT reads the flag, and would treat the matrices as 4-bit ones
    plain_model.is_loaded_in_4bit = False
    return model


def merge_adapter(model: PreTrainedModel, adapter: ModelDirectory | None) -> PreTrainedModel:
    """Merge an adapter into the 16- or 32-bit matrices of a model, and return the model."""
    if adapter is None:
        return model
    # PEFT keeps the factors in float32, and so their product and the sum
    merged: Any = adapter.load_adapter(model).merge_and_unload()
    return merged  # type: ignore[no-any-return]


def keep_adapter_unmerged(
    model: PreTrainedModel, adapter: ModelDirectory | None
) -> PreTrainedModel | PeftModel:
    """Return a 4-bit model with an unmerged adapter, both with the faster layers of ``nf4_layers``.

    The adapter is cast to bfloat16.
    """
    from ja_instruct.engine.nf4_layers import use_fused_nf4, use_lean_lora

    adapted: PreTrainedModel | PeftModel = model
    if adapter is not None:
        adapted = adapter.load_adapter(model, autocast_adapter_dtype=False)
        use_lean_lora(adapted)
    use_fused_nf4(adapted)
    return adapted
