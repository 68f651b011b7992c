"""The layers of a 4-bit model and of its adapter, computed in as few steps as it takes."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ja_instruct.engine.kernels.nf4_dequantize import Factors, dequantize
from ja_instruct.engine.kernels.nf4_matmul import (
    MAX_ROWS,
    LowRank,
    arrange,
    nf4_matmul,
)
from ja_instruct.engine.kernels.nf4_weight import Nf4Weight, nf4_weight
from ja_instruct.engine.kernels.triton import is_available

logger = logging.getLogger(__name__)

# one row is a matrix times a vector, for which bitsandbytes has a kernel of its own
MIN_ROWS = 2
# columns of an adapter's factors that the kernel takes at once
RANK_STEP = 16
# children of a module that get the same input
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))

Forward = Callable[..., torch.Tensor]


class Remembered:
    """What was made of the latest input, for layers that get the same one in turn."""

    def __init__(self, make: Callable[..., torch.Tensor]) -> None:
        """Take what makes it, of an input and perhaps a factor."""
        self._make = make
        self._key: tuple[torch.Tensor, ...] = ()
        self._made: torch.Tensor | None = None

    def __call__(self, *key: torch.Tensor) -> torch.Tensor:
        """Return what is made of the tensors, anew unless they are the very ones of before."""
        # they are kept, so that no other tensor can pass for them
        same = len(key) == len(self._key) and all(map(operator.is_, key, self._key))
        if not same or self._made is None:
            self._key, self._made = key, self._make(*key)
        return self._made


class FusedNf4:
    """A 4-bit layer's ``forward``, with the kernel where the numbers are for it."""

    def __init__(
        self, layer: Any, weight: Nf4Weight, theirs: Forward, arranged: Remembered
    ) -> None:
        """Take a layer, its weight, its own ``forward`` and what arranges inputs."""
        self._layer, self._weight, self._theirs = layer, weight, theirs
        self._arranged = arranged
        self._in_bf16 = layer.compute_dtype in (None, torch.bfloat16)

    def supports_matmul(self, x: torch.Tensor) -> bool:
        """Return whether the kernel that multiplies is for ``x``: 2 to 64 rows in bfloat16."""
        inputs = self._weight.inputs
        return MIN_ROWS * inputs <= x.numel() <= MAX_ROWS * inputs and self._is_of_kind(x)

    def supports_dequantized(self, x: torch.Tensor) -> bool:
        """Return whether weights are written out for ``x``: more rows, in bfloat16."""
        return x.numel() > MAX_ROWS * self._weight.inputs and self._is_of_kind(x)

    def _is_of_kind(self, x: torch.Tensor) -> bool:
        return self._in_bf16 and x.dtype == torch.bfloat16 and x.device == self._weight.quads.device

    def with_factors(self, x: torch.Tensor, factors: Factors | None) -> torch.Tensor:
        """Return the layer's output with weights written out, an adapter's part among them."""
        weight = dequantize(self._weight, factors)
        return torch.nn.functional.linear(x, weight, self._layer.bias)

    def __call__(self, x: torch.Tensor, low_rank: LowRank | None = None) -> torch.Tensor:
        """Return the layer's output, and what an adapter adds where the kernel takes ``x``."""
        if self.supports_dequantized(x):
            return self.with_factors(x, None)
        if not self.supports_matmul(x):
            return self._theirs(x)
        weight = self._weight
        rows = x.reshape(-1, weight.inputs)
        output = nf4_matmul(
            rows, weight, self._layer.bias, arranged=self._arranged(x), low_rank=low_rank
        )
        return output.view(*x.shape[:-1], weight.outputs)


def use_fused_nf4(model: Any) -> int:
    """Make a model's 4-bit layers multiply a few rows without writing their weights out.

    For 2 to 64 rows in bfloat16, a step of generation, that is ``nf4_matmul``. For more, a prompt,
    ``dequantize`` writes weights out; for a single one bitsandbytes' own way stays, which is faster
    there. It is for inference: the kernels have no gradients. A model must not be moved or
    quantized anew afterwards, nor an input changed in place between two layers that get it.

    Args:
        model: With layers of bitsandbytes, also below those of PEFT.

    Returns:
        How many layers; 0 where the model is on no GPU that can.
    """
    from bitsandbytes.nn.modules import Linear4bit

    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, Linear4bit)]
    arranged = Remembered(lambda x: arrange(x.reshape(-1, x.shape[-1])))
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
        layer.forward = FusedNf4(layer, weight, layer.forward, arranged)
        changed += 1
    for reason in sorted(reasons):
        logger.warning("Some layers stay with bitsandbytes' own multiplication: %s", reason)
    logger.info("%d of %d 4-bit layers multiply a few rows in four bits", changed, len(layers))
    return changed


def use_lean_lora(model: Any) -> int:
    """Make a model's LoRA layers apply their one active adapter with two multiplications.

    LoRA (arXiv:2106.09685). PEFT's own layers cast, drop out, scale and add one after the other,
    each a kernel to launch; here the second multiplication scales and adds, and layers that get the
    same input share the first. Where ``use_fused_nf4`` has been there, a step's second is within
    the multiplication of the 4-bit layer below, and for a prompt both are added to its weights. The
    adapter's weights are cast once, in place, to the type the layer computes in, so that less
    memory is taken, too. It is for inference: there is no dropout. Layers stay PEFT's where there
    is more to do: with variants such as DoRA, with biases, with several active adapters. So does
    their computation while the adapter is merged, switched off or given by name.

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
    for layer, narrow in _narrowed(model, plain):
        layer.forward = _lean(layer, layer.active_adapters[0], layer.forward, narrow)
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


def _narrowed(model: Any, layers: list[Any]) -> list[tuple[Any, Forward]]:
    """Return the layers, each with what multiplies its input with its first factor.

    The first factors of siblings become one matrix, of which each has its rows.
    """
    multiply = Remembered(_multiply_rows)
    left = {id(layer): layer for layer in layers}
    found: list[tuple[Any, Forward]] = []
    for parent in model.modules():
        children = dict(parent.named_children())
        for names in SIBLINGS:
            siblings = [left[id(one)] for one in map(children.get, names) if id(one) in left]
            factors = [_first_factor(one) for one in siblings]
            if len(factors) < len(names) or len({(one.dtype, one.shape[1]) for one in factors}) > 1:
                continue
            joined = torch.cat([one.data for one in factors])
            begin = 0
            for layer, factor in zip(siblings, factors, strict=True):
                end = begin + len(factor)
                factor.data = joined[begin:end]
                found.append((left.pop(id(layer)), _columns(multiply, joined, begin, end)))
                begin = end
    # the input of an only one is of no use afterwards, and may be the largest of a layer
    alone = [(one, partial(_multiply_rows, factor=_first_factor(one))) for one in left.values()]
    return [*found, *alone]


def _first_factor(layer: Any) -> torch.Tensor:
    weight: torch.Tensor = layer.lora_A[layer.active_adapters[0]].weight
    return weight


def _multiply_rows(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(x.reshape(-1, x.shape[-1]), factor)


def _columns(multiply: Remembered, factor: torch.Tensor, begin: int, end: int) -> Forward:
    return lambda x: multiply(x, factor)[:, begin:end]


def _lean(layer: Any, name: str, theirs: Forward, narrow: Forward) -> Forward:
    """Return a LoRA layer's computation with its adapter of that name."""
    first, second = layer.lora_A[name].weight, layer.lora_B[name].weight
    scaling = layer.scaling[name]
    factors = Factors(first, second, scaling)

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        usual = not (args or kwargs or layer.disable_adapters or layer.merged)
        if not usual or x.dtype != first.dtype or layer.active_adapters != [name]:
            return theirs(x, *args, **kwargs)
        below = layer.base_layer.forward
        if (
            isinstance(below, FusedNf4)
            and below.supports_matmul(x)
            and second.shape[1] % RANK_STEP == 0
        ):
            return below(x, LowRank(narrow(x), second, scaling))
        if isinstance(below, FusedNf4) and below.supports_dequantized(x) and factors.can_be_added:
            return below.with_factors(x, factors)
        result: torch.Tensor = layer.base_layer(x)
        # in place, as the layer below has just made it
        result.view(-1, result.shape[-1]).addmm_(narrow(x), second.T, alpha=scaling)
        return result

    return forward
