"""Layers of a 4-bit model and of its LoRA adapter, computed with few kernels."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ja_instruct.engine.kernels.nf4_dequantize import Factors, dequantize
from ja_instruct.engine.kernels.nf4_matmul import MAX_ROWS, LowRank, arrange, nf4_matmul
from ja_instruct.engine.kernels.nf4_weight import Nf4Weight, nf4_weight
from ja_instruct.engine.kernels.triton import is_available

if TYPE_CHECKING:
    from bitsandbytes.nn.modules import Linear4bit

logger = logging.getLogger(__name__)

# A single row is a matrix-vector product, for which bitsandbytes has its own faster kernel
MIN_ROWS = 2
# Columns of the adapter's matrix B that the kernel processes at once
RANK_STEP = 16
# Children of a module that get the same input
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))

Forward = Callable[..., torch.Tensor]


class LatestResult:
    """Keeps a function's latest result, for layers that get the same input in turn."""

    def __init__(self, compute: Callable[..., torch.Tensor]) -> None:
        """Set the function of one or several tensors."""
        self._compute = compute
        self._inputs: tuple[torch.Tensor, ...] = ()
        self._result: torch.Tensor | None = None

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return the function's result, computed only for other tensors than before."""
        # the tensors are kept, so that no other tensor can have their identity
        same = len(inputs) == len(self._inputs) and all(map(operator.is_, inputs, self._inputs))
        if not same or self._result is None:
            self._inputs, self._result = inputs, self._compute(*inputs)
        return self._result


class FusedNf4:
    """The ``forward`` of a 4-bit layer, with the kernels where they support the input."""

    def __init__(
        self, layer: Linear4bit, weight: Nf4Weight, original: Forward, arranged: LatestResult
    ) -> None:
        """Wrap a layer with its weight and its own ``forward``.

        ``arranged`` computes ``arrange`` of an input; layers that get the same input share it.
        """
        self._layer, self._weight, self._original = layer, weight, original
        self._arranged = arranged
        self._in_bf16 = layer.compute_dtype in (None, torch.bfloat16)

    def supports_matmul(self, x: torch.Tensor) -> bool:
        """Return whether ``nf4_matmul`` supports ``x``: 2 to 64 rows in bfloat16."""
        inputs = self._weight.inputs
        return MIN_ROWS * inputs <= x.numel() <= MAX_ROWS * inputs and self._supports_dtype(x)

    def supports_dequantized(self, x: torch.Tensor) -> bool:
        """Return whether the weight is dequantized for ``x``: more rows, in bfloat16."""
        return x.numel() > MAX_ROWS * self._weight.inputs and self._supports_dtype(x)

    def _supports_dtype(self, x: torch.Tensor) -> bool:
        device = self._weight.packed.device
        return self._in_bf16 and x.dtype == torch.bfloat16 and x.device == device

    def with_factors(self, x: torch.Tensor, factors: Factors | None) -> torch.Tensor:
        """Return the layer's output with the dequantized weight, to which an adapter is added."""
        weight = dequantize(self._weight, factors)
        return torch.nn.functional.linear(x, weight, self._layer.bias)

    def __call__(self, x: torch.Tensor, low_rank: LowRank | None = None) -> torch.Tensor:
        """Return the layer's output, with an adapter's if ``supports_matmul``."""
        if self.supports_dequantized(x):
            return self.with_factors(x, None)
        if not self.supports_matmul(x):
            return self._original(x)
        weight = self._weight
        rows = x.reshape(-1, weight.inputs)
        output = nf4_matmul(
            rows, weight, self._layer.bias, arranged=self._arranged(x), low_rank=low_rank
        )
        return output.view(*x.shape[:-1], weight.outputs)


def use_fused_nf4(model: torch.nn.Module) -> int:
    """Make a model's 4-bit layers compute with the NF4 kernels; return how many were changed.

    Inputs of 2 to 64 rows in bfloat16, a decoding step, use ``nf4_matmul``. Longer ones, prefill,
    use ``dequantize``. A single row stays with bitsandbytes, which is faster there. For inference
    only: the kernels have no gradients. Afterwards the model must not be moved or quantized again,
    and no input may be changed in place between two layers that get it.
    """
    from bitsandbytes.nn.modules import Linear4bit

    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, Linear4bit)]
    arranged = LatestResult(lambda x: arrange(x.reshape(-1, x.shape[-1])))
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
        logger.warning("some layers keep bitsandbytes' own multiplication: %s", reason)
    logger.info("%d of %d 4-bit layers use the NF4 kernels", changed, len(layers))
    return changed


def use_lean_lora(model: torch.nn.Module) -> int:
    """Make LoRA layers apply their one active adapter with two multiplications; return how many.

    LoRA (arXiv:2106.09685). PEFT's own layers cast, apply dropout, scale and add in turn, each with
    its own kernel. Here the multiplication by B scales and adds, and layers with the same input
    share the multiplication by A. Above a layer of ``use_fused_nf4`` the multiplication by B is
    part of ``nf4_matmul`` in a decoding step, and in prefill B A is added to the dequantized
    weight. The adapter is cast in place to the layer's dtype. For inference only: there is no
    dropout. Layers with variants such as DoRA, biases or several active adapters keep PEFT's
    computation, and so does any layer while its adapter is merged, disabled or given by name.
    """
    from peft.import_utils import is_bnb_4bit_available
    from peft.tuners import lora

    types: tuple[type, ...] = (lora.Linear,)
    if is_bnb_4bit_available():
        types += (lora.Linear4bit,)
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, types)]
    plain = [layer for layer in layers if _is_plain(layer)]
    for layer in plain:
        (name,) = layer.active_adapters
        dtype = _compute_dtype(layer.base_layer)
        for part in (layer.lora_A[name], layer.lora_B[name]):
            part.weight.data = part.weight.data.to(dtype)
    for layer, multiply_a in _with_multiply_a(model, plain):
        layer.forward = _lean(layer, layer.active_adapters[0], layer.forward, multiply_a)
    return len(plain)


def _is_plain(layer: Any) -> bool:
    active = layer.active_adapters
    return (
        len(active) == 1
        and active[0] in layer.lora_A
        and active[0] not in layer.lora_variant
        and not layer.lora_bias[active[0]]
    )


def _compute_dtype(base: Any) -> torch.dtype:
    """Return the dtype that the layer below an adapter computes in."""
    if base.weight.dtype.is_floating_point:
        return base.weight.dtype  # type: ignore[no-any-return]
    return base.compute_dtype or torch.bfloat16


def _with_multiply_a(model: torch.nn.Module, layers: list[Any]) -> list[tuple[Any, Forward]]:
    """Return the layers, each with the function that multiplies its input by A.

    The matrices A of siblings become one matrix, of which each layer uses its rows.
    """
    multiply = LatestResult(_multiply_rows)
    left = {id(layer): layer for layer in layers}
    found: list[tuple[Any, Forward]] = []
    for parent in model.modules():
        children = dict(parent.named_children())
        for names in SIBLINGS:
            siblings = [left[id(one)] for one in map(children.get, names) if id(one) in left]
            factors = [_lora_a(one) for one in siblings]
            if len(factors) < len(names) or len({(one.dtype, one.shape[1]) for one in factors}) > 1:
                continue
            joined = torch.cat([one.data for one in factors])
            begin = 0
            for layer, factor in zip(siblings, factors, strict=True):
                end = begin + len(factor)
                factor.data = joined[begin:end]
                found.append((left.pop(id(layer)), _columns(multiply, joined, begin, end)))
                begin = end
    # Without siblings nothing is kept: the input is not needed again, and can be a layer's largest.
    alone = [(one, partial(_multiply_rows, factor=_lora_a(one))) for one in left.values()]
    return [*found, *alone]


def _lora_a(layer: Any) -> torch.Tensor:
    weight: torch.Tensor = layer.lora_A[layer.active_adapters[0]].weight
    return weight


def _multiply_rows(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(x.reshape(-1, x.shape[-1]), factor)


def _columns(multiply: LatestResult, factor: torch.Tensor, begin: int, end: int) -> Forward:
    return lambda x: multiply(x, factor)[:, begin:end]


def _lean(layer: Any, name: str, original: Forward, multiply_a: Forward) -> Forward:
    """Return the ``forward`` of a LoRA layer with its adapter of that name."""
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    scaling = layer.scaling[name]
    factors = Factors(a, b, scaling)
    has_whole_steps = b.shape[1] % RANK_STEP == 0

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        usual = not (args or kwargs or layer.disable_adapters or layer.merged)
        if not usual or x.dtype != a.dtype or layer.active_adapters != [name]:
            return original(x, *args, **kwargs)
        below = layer.base_layer.forward
        if isinstance(below, FusedNf4) and below.supports_matmul(x) and has_whole_steps:
            return below(x, LowRank(multiply_a(x), b, scaling))
        if isinstance(below, FusedNf4) and below.supports_dequantized(x) and factors.can_be_added:
            return below.with_factors(x, factors)
        result: torch.Tensor = layer.base_layer(x)
        # in place, because the layer below has just allocated it
        result.view(-1, result.shape[-1]).addmm_(multiply_a(x), b.T, alpha=scaling)
        return result

    return forward
