"""The kernels of ``fused_layers``: RMSNorm, gated activation and rotary embedding."""

from __future__ import annotations

from typing import Literal

import torch

from ja_instruct.engine.kernels.triton import jit, tl

# How a norm applies its weight to x, which is normalized in float32. one_plus: x * (1 + weight),
# rounded once (Gemma); rounded: x is rounded before the product (Llama); exact: x * weight, rounded
# once.
Form = Literal["one_plus", "rounded", "exact"]
Activation = Literal["gelu_tanh", "silu"]

# The largest row that a program of the norm can hold
WIDEST = 2**15
GATED_AT_ONCE = 1024


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, form: Form) -> torch.Tensor:
    """Return RMSNorm (arXiv:1910.07467), computed in float32.

    Like the other kernels here it needs no host synchronization, and after a first call, which
    compiles, a CUDA graph can capture it.

    ``x`` is (..., width) in 16 bits, ``weight`` is (width,), and ``eps`` is added to the mean
    square. The result has the shape and dtype of ``x``.
    """
    width = x.shape[-1]
    x = x.contiguous()
    output = torch.empty_like(x)
    block = 1 << (width - 1).bit_length()
    _normalize[(x.numel() // width,)](
        x, weight.contiguous(), output, width, eps,
        one_plus=form == "one_plus", rounded=form == "rounded", block=block,
        num_warps=min(16, max(1, block // 512)),
    )  # fmt: skip
    return output


def gated(gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Return activation(gate) * up of the same shape, in 16 bits.

    Computed in float32 and rounded once. The activation is GELU's approximation with tanh
    (arXiv:1606.08415), or SiLU.
    """
    gate, up = gate.contiguous(), up.contiguous()
    output = torch.empty_like(gate)
    count = gate.numel()
    _gate[(-(-count // GATED_AT_ONCE),)](
        gate, up, output, count,
        gelu=activation == "gelu_tanh", block=GATED_AT_ONCE, num_warps=4,
    )  # fmt: skip
    return output


def rotate(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return queries and keys with rotary embedding (RoFormer, arXiv:2104.09864).

    The halves of a head are the coordinates, as in transformers. Queries and keys are (sequences,
    heads, tokens, width), ``cos`` and ``sin`` (sequences or 1, tokens, width), all in 16 bits and
    dense in the width. Computed in float32 and rounded once; the results are contiguous.
    """
    sequences, heads, tokens, width = query.shape
    key_heads = key.shape[1]
    outputs = [
        torch.empty(numbers.shape, dtype=query.dtype, device=query.device)
        for numbers in (query, key)
    ]
    # all sequences can share the angles of one
    steps = [0 if angle.shape[0] == 1 else angle.stride(0) for angle in (cos, sin)]
    _rotate[(sequences * tokens, heads + key_heads)](
        query, key, cos, sin, *outputs, *query.stride()[:3], *key.stride()[:3], steps[0],
        cos.stride(1), steps[1], sin.stride(1), tokens, heads, key_heads,
        half=width // 2, block=1 << (width // 2 - 1).bit_length(), num_warps=1,
    )  # fmt: skip
    return outputs[0], outputs[1]


@jit()
def _normalize(
    x: tl.tensor, weight: tl.tensor, output: tl.tensor, width: tl.tensor, eps: tl.tensor,
    one_plus: tl.constexpr, rounded: tl.constexpr, block: tl.constexpr,
) -> None:  # fmt: skip
    """Normalize a row."""
    column = tl.arange(0, block)
    inside = column < width
    at = tl.program_id(0).to(tl.int64) * width + column
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, axis=0) / width + eps)
    if rounded:
        value = value.to(output.dtype.element_ty).to(tl.float32)
    if one_plus:
        scale += 1.0
    tl.store(output + at, (value * scale).to(output.dtype.element_ty), mask=inside)


@jit()
def _gate(
    gate: tl.tensor, up: tl.tensor, output: tl.tensor, count: tl.tensor,
    gelu: tl.constexpr, block: tl.constexpr,
) -> None:  # fmt: skip
    """Apply the gate to a block of numbers."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < count
    x = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    slope = x
    if gelu:
        # (1 + tanh(u)) / 2 is the logistic function of 2u, without cancellation; the constant is
        # 2 √(2/π)
        slope = 1.5957691216057308 * (x + 0.044715 * x * x * x)
    result = x / (1.0 + tl.exp(-slope)) * factor
    tl.store(output + at, result.to(output.dtype.element_ty), mask=inside)


@jit()
def _rotate(
    query: tl.tensor, key: tl.tensor, cos: tl.tensor, sin: tl.tensor, query_output: tl.tensor,
    key_output: tl.tensor,
    query_sequence: tl.tensor, query_head: tl.tensor, query_token: tl.tensor,
    key_sequence: tl.tensor, key_head: tl.tensor, key_token: tl.tensor, cos_sequence: tl.tensor,
    cos_token: tl.tensor, sin_sequence: tl.tensor, sin_token: tl.tensor,
    tokens: tl.tensor, heads: tl.tensor, key_heads: tl.tensor,
    half: tl.constexpr, block: tl.constexpr,
) -> None:  # fmt: skip
    """Rotate one head of one token: the queries' heads first, then the keys'."""
    place = tl.program_id(0).to(tl.int64)
    sequence = place // tokens
    token = place % tokens
    head = tl.program_id(1).to(tl.int64)
    cos_at = cos + sequence * cos_sequence + token * cos_token
    sin_at = sin + sequence * sin_sequence + token * sin_token
    if head < heads:
        line = (sequence * heads + head) * tokens + token
        at = sequence * query_sequence + head * query_head + token * query_token
        _turn(query + at, cos_at, sin_at, query_output + line * (2 * half), half, block)
    else:
        head -= heads
        line = (sequence * key_heads + head) * tokens + token
        at = sequence * key_sequence + head * key_head + token * key_token
        _turn(key + at, cos_at, sin_at, key_output + line * (2 * half), half, block)


@jit()
def _turn(
    x: tl.tensor, cos: tl.tensor, sin: tl.tensor, output: tl.tensor,
    half: tl.constexpr, block: tl.constexpr,
) -> None:  # fmt: skip
    """Rotate one head, whose halves are the coordinates."""
    low = tl.arange(0, block)
    high = half + low
    inside = low < half
    kind = output.dtype.element_ty
    first = tl.load(x + low, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + high, mask=inside, other=0.0).to(tl.float32)
    turned = first * tl.load(cos + low, mask=inside, other=0.0).to(tl.float32)
    turned -= second * tl.load(sin + low, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + low, turned.to(kind), mask=inside)
    turned = second * tl.load(cos + high, mask=inside, other=0.0).to(tl.float32)
    turned += first * tl.load(sin + high, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + high, turned.to(kind), mask=inside)
