"""The layers of a 4-bit model and of its adapter, computed in as few steps as it takes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from ja_instruct.generation.nf4_matmul import (
    MAX_ROWS,
    Nf4Weight,
    is_available,
    nf4_matmul,
    nf4_weight,
)

logger = logging.getLogger(__name__)

# one row is a matrix times a vector, for which bitsandbytes has a kernel of its own
MIN_ROWS = 2

Forward = Callable[..., torch.Tensor]


def use_fused_nf4(model: Any) -> int:
    """Make a model's 4-bit layers multiply a few rows without writing their weights out.

    For 2 to 64 rows in bfloat16, a step of generation, that is ``nf4_matmul``; for more, a prompt,
    and for a single one bitsandbytes' own way stays, which is faster there. It is for inference:
    the kernel has no gradients. A model must not be moved or quantized anew afterwards.

    Args:
        model: With layers of bitsandbytes, also below those of PEFT.

    Returns:
        How many layers; 0 where the model is on no GPU that can.
    """
    from bitsandbytes.nn.modules import Linear4bit

    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, Linear4bit)]
    changed, reasons = 0, set()
    for layer in layers:
        packed = layer.weight.data
        state = getattr(layer.weight, "quant_state", None) or layer.quant_state
        if state is None or not is_available(packed.device):
            continue
        try:
            weight = nf4_weight(packed, state)
        except ValueError as error:
            reasons.add(str(error))
            continue
        layer.forward = _fused(layer, weight, layer.forward)
        changed += 1
    for reason in sorted(reasons):
        logger.warning("Some layers stay with bitsandbytes' own multiplication: %s", reason)
    logger.info("%d of %d 4-bit layers multiply a few rows in four bits", changed, len(layers))
    return changed


def _fused(layer: Any, weight: Nf4Weight, theirs: Forward) -> Forward:
    """Return a layer's computation, bitsandbytes' where the kernel is not for the numbers."""
    shared = layer.compute_dtype in (None, torch.bfloat16)

    def forward(x: torch.Tensor) -> torch.Tensor:
        few = MIN_ROWS * weight.inputs <= x.numel() <= MAX_ROWS * weight.inputs
        if not (shared and few and x.dtype == torch.bfloat16 and x.device == weight.words.device):
            return theirs(x)
        rows = x.reshape(-1, weight.inputs)
        return nf4_matmul(rows, weight, layer.bias).view(*x.shape[:-1], weight.outputs)

    return forward


def use_lean_lora(model: Any) -> int:
    """Make a model's LoRA layers apply their one active adapter with two multiplications.

    LoRA (arXiv:2106.09685). PEFT's own layers cast, drop out, scale and add one after the other,
    each a kernel to launch; here the second multiplication scales and adds. The adapter's weights
    are cast once, in place, to the type the layer computes in, so that less memory is taken, too.
    It is for inference: there is no dropout. Layers stay PEFT's where there is more to do: with
    variants such as DoRA, with biases, with several active adapters. So does their computation
    while the adapter is merged, switched off or given by name.

    Args:
        model: Wrapped by PEFT.

    Returns:
        How many layers.
    """
    from peft.import_utils import is_bnb_4bit_available
    from peft.tuners import lora

    kinds: tuple[type, ...] = (lora.Linear,)
    if is_bnb_4bit_available():
        kinds += (lora.Linear4bit,)
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, kinds)]
    plain = [layer for layer in layers if _is_plain(layer)]
    for layer in plain:
        (name,) = layer.active_adapters
        kind = _computed_in(layer.base_layer)
        for part in (layer.lora_A[name], layer.lora_B[name]):
            part.weight.data = part.weight.data.to(kind)
        layer.forward = _lean(layer, name, layer.forward)
    return len(plain)


def _is_plain(layer: Any) -> bool:
    active = layer.active_adapters
    return (
        len(active) == 1
        and active[0] in layer.lora_A
        and active[0] not in layer.lora_variant
        and not layer.lora_bias[active[0]]
    )


def _computed_in(base: Any) -> torch.dtype:
    """Return the type that a layer below an adapter computes in."""
    if base.weight.dtype.is_floating_point:
        return base.weight.dtype  # type: ignore[no-any-return]
    return base.compute_dtype or torch.bfloat16


def _lean(layer: Any, name: str, theirs: Forward) -> Forward:
    """Return a LoRA layer's computation with its adapter of that name."""
    first, second = layer.lora_A[name].weight, layer.lora_B[name].weight
    scaling = layer.scaling[name]

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        usual = not (args or kwargs or layer.disable_adapters or layer.merged)
        if not usual or x.dtype != first.dtype or layer.active_adapters != [name]:
            return theirs(x, *args, **kwargs)
        result: torch.Tensor = layer.base_layer(x)
        narrow = torch.nn.functional.linear(x.reshape(-1, x.shape[-1]), first)
        # in place, as the layer below has just made it
        result.view(-1, result.shape[-1]).addmm_(narrow, second.T, alpha=scaling)
        return result

    return forward
