"""Attention, norms, gates and rotations of Gemma 2 27B: the kernels, and what they replace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch

from benchmarks.generation.kernel_timing import Clock, compare
from ja_instruct.engine import attention
from ja_instruct.engine.attention import grouped_attention
from ja_instruct.engine.kernels.decode_attention import decode_attention
from ja_instruct.engine.kernels.int8_kv import Int8Vectors, hadamard_rotate, quantize_int8
from ja_instruct.engine.kernels.norm_rope_gate import gated, rms_norm, rotate
from ja_instruct.engine.kernels.prefill_attention import prefill_attention

HEADS, KEY_HEADS, WIDTH = 32, 16, 128
SOFTCAP, SCALING = 50.0, 144**-0.5
HIDDEN, INTERMEDIATE = 4608, 36_864
#: Tokens of a prompt's piece, and how many keys there are with them.
PIECES = ((1024, 1024), (1024, 2048), (1024, 3072), (2048, 2048))
#: Sequences of a step, the positions that a cache has for each, and how many are taken.
SEQUENCES, CACHED, SHORTEST, LONGEST = 40, 4096, 3216, 3584
#: Sequences and tokens of each.
STEP, PIECE = (SEQUENCES, 1), (1, 1024)

Tensors = tuple[torch.Tensor | Int8Vectors, ...]


@contextmanager
def without_kernels() -> Iterator[None]:
    """Make grouped attention compute with PyTorch's operations, as where no kernel is for it."""
    refuse = mock.Mock(return_value=False)
    with mock.patch.multiple(attention, supports_decode=refuse, supports_prefill=refuse):
        yield


def attend_in_operations(tensors: Tensors) -> torch.Tensor:
    """Return (sequences, tokens, heads, width), written with PyTorch's operations."""
    module = torch.nn.Identity()
    with without_kernels():
        return grouped_attention(module, *tensors, SCALING, softcap=SOFTCAP)[0]


def attend_in_kernel(kernel: Any, tensors: Tensors) -> torch.Tensor:
    """Return the same, as grouped attention takes it from a kernel."""
    return kernel(*tensors, SCALING, SOFTCAP).transpose(1, 2)


def in_float32(tensor: torch.Tensor | Int8Vectors) -> torch.Tensor:
    """Return what a tensor stands for in float32."""
    return tensor.dequantize(torch.float32) if isinstance(tensor, Int8Vectors) else tensor.float()


def compare_attention(kernel: Any, tensors: Tensors, clock: Clock) -> dict[str, float]:
    """Compare a kernel with PyTorch's operations, both with those in float32."""

    def exact() -> torch.Tensor:
        query, *others = map(in_float32, tensors)
        if isinstance(tensors[1], Int8Vectors):
            query = hadamard_rotate(query)
        return attend_in_operations((query, *others))

    return compare(
        partial(attend_in_kernel, kernel, tensors),
        partial(attend_in_operations, tensors),
        exact,
        clock,
    )


def draw_attention(positions: torch.Tensor, span: int, cached: int) -> Tensors:
    """Return queries, keys, values and mask as the engine has them: keys are a view of a cache.

    Args:
        positions: Of each sequence's tokens, (sequences, tokens); they see all before themselves.
        span: Positions of the cache that are shown.
        cached: Positions that it has.
    """
    sequences, tokens = positions.shape
    given: dict[str, Any] = {"device": positions.device, "dtype": torch.bfloat16}
    # so large that the bound on the scores matters
    query = torch.randn(sequences, tokens, HEADS, WIDTH, **given).transpose(1, 2) * 2
    cache = torch.randn(2, sequences, KEY_HEADS, cached, WIDTH, **given)[:, :, :, :span]
    hidden = torch.arange(span, device=positions.device) > positions[:, None, :, None]
    mask = torch.zeros(hidden.shape, **given)
    mask = mask.masked_fill(hidden, torch.finfo(torch.bfloat16).min)
    return query, cache[0], cache[1], mask


def compare_pieces(device: torch.device, clock: Clock) -> dict[str, dict[str, float]]:
    """Compare attention of a prompt's pieces."""
    rows = {}
    for tokens, span in PIECES:
        positions = torch.arange(span - tokens, span, device=device)[None]
        tensors = draw_attention(positions, span, CACHED)
        rows[f"{tokens} of {span}"] = compare_attention(prefill_attention, tensors, clock)
    return rows


def compare_decoding(device: torch.device, clock: Clock) -> dict[str, dict[str, float]]:
    """Compare attention of a step's sequences, shown as many keys as the longest one has.

    Of keys and values in 8 bits PyTorch's operations make 16-bit ones first.
    """
    lengths = torch.linspace(SHORTEST, LONGEST, SEQUENCES, device=device).long()
    query, keys, values, mask = draw_attention(lengths[:, None] - 1, LONGEST, CACHED)
    in_8_bits = [quantize_int8(hadamard_rotate(keys)), quantize_int8(values)]
    name = f"{SEQUENCES} sequences"
    return {
        name: compare_attention(decode_attention, (query, keys, values, mask), clock),
        f"{name}, int8": compare_attention(decode_attention, (query, *in_8_bits, mask), clock),
    }


def compare_norm(tokens: int, device: torch.device, clock: Clock) -> dict[str, float]:
    """Compare a norm."""
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

    norm = Gemma2RMSNorm(HIDDEN).to(device, torch.bfloat16)
    norm.weight.data.normal_(std=0.2)
    x = torch.randn(tokens, HIDDEN, device=device).bfloat16()
    return compare(
        lambda: rms_norm(x, norm.weight, norm.eps, "one_plus"),
        lambda: norm(x),
        lambda: norm(x.float()),
        clock,
    )


def compare_gate(tokens: int, device: torch.device, clock: Clock) -> dict[str, float]:
    """Compare what is between a layer's matrices."""
    from transformers.activations import ACT2FN

    activation = ACT2FN["gelu_pytorch_tanh"]
    gate, up = torch.randn(2, tokens, INTERMEDIATE, device=device).bfloat16()
    return compare(
        lambda: gated(gate, up, "gelu_tanh"),
        lambda: activation(gate) * up,
        lambda: activation(gate.float()) * up.float(),
        clock,
    )


def compare_rotation(
    shape: tuple[int, int], device: torch.device, clock: Clock
) -> dict[str, float]:
    """Compare the rotation of queries and keys, which lie as their matrices have left them."""
    from transformers.models.gemma2.modeling_gemma2 import apply_rotary_pos_emb

    query, key = (
        torch.randn(*shape, heads, WIDTH, device=device).bfloat16().transpose(1, 2)
        for heads in (HEADS, KEY_HEADS)
    )
    angles = torch.rand(*shape, WIDTH // 2, device=device).repeat(1, 1, 2) * 6.28
    given = (query, key, angles.cos().bfloat16(), angles.sin().bfloat16())
    return compare(
        lambda: rotate(*given),
        lambda: apply_rotary_pos_emb(*given),
        lambda: apply_rotary_pos_emb(*(tensor.float() for tensor in given)),
        clock,
    )


def compare_layers(device: torch.device, clock: Clock) -> dict[str, dict[str, float]]:
    """Compare what is fused, for a step and for a piece of a prompt."""
    rows = {}
    for name, shape in (("step", STEP), ("piece", PIECE)):
        tokens = shape[0] * shape[1]
        rows[f"norm, {name} of {tokens}"] = compare_norm(tokens, device, clock)
        rows[f"gate, {name} of {tokens}"] = compare_gate(tokens, device, clock)
        rows[f"rotation, {name} of {tokens}"] = compare_rotation(shape, device, clock)
    return rows
