"""Attention of one token a sequence in one reading of keys and values, up to where they reach.

Written with PyTorch's operations a step writes and reads its scores five times, and reads keys as
far as the longest sequence goes. Here each program reads a part of one sequence's keys of one head
and keeps a running softmax (FlashAttention, arXiv:2205.14135; over parts: Flash-Decoding).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch

from ja_instruct.engine.kernels.decode_kernels import (
    INVERSE,
    NUMBERS,
    POWER,
    attend,
    attend_in_int8,
    join,
)
from ja_instruct.engine.kernels.int8_kv import TURNED_AT_ONCE, Int8Vectors, hadamard_matrix
from ja_instruct.engine.kernels.triton import supports_heads, supports_ptx, traits

# Numbers of keys that a program reads at once
TILE = 64 * 128
# Programs of a processor, about, and of a key head at least: of fewer, the last to end hold up more
PROGRAMS, LEAST_PARTS = 4, 2
# positions that a program looks through for what is visible
LONGEST_PART = 4096


def supports_decode(query: torch.Tensor, key: torch.Tensor | Int8Vectors) -> bool:
    """Return whether the kernel is for such a step: one token a sequence, in 16 bits, on CUDA.

    Keys and values may be in 8 bits.
    """
    computed = query if isinstance(key, Int8Vectors) else key
    return query.shape[2] == 1 and supports_heads(query, computed)


def decode_attention(
    query: torch.Tensor,
    key: torch.Tensor | Int8Vectors,
    value: torch.Tensor | Int8Vectors,
    mask: torch.Tensor,
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:
    """Return what each sequence's token attends to; see ``grouped_attention``.

    The order of summing depends on shapes and device alone. There is nothing to wait for, and after
    a first call, which compiles, a CUDA graph can hold it.

    Args:
        query: (sequences, heads, 1, width); the heads that share a key head follow each other.
        key: (sequences, key heads, span, width), also a view of a longer cache; perhaps in 8 bits,
            then rotated, and the numbers of a head's positions following each other.
        value: As the keys.
        mask: Added to the scores, (sequences or 1, 1, 1, span); where it is the least number of its
            type at both ends, keys are not read.
        scaling: Of the scores.
        softcap: What scores are bounded by; None leaves them.

    Returns:
        (sequences, heads, 1, width).
    """
    sequences, heads, _, width = query.shape
    key_heads, span = (key.scales if isinstance(key, Int8Vectors) else key).shape[1:3]
    group, pairs = heads // key_heads, sequences * key_heads
    block = max(16, TILE // width)
    # none with more to look through than it can
    wanted = max(
        -(-PROGRAMS * traits(query.device).processors // pairs),
        LEAST_PARTS,
        -(-span // LONGEST_PART),
    )
    part = -(-span // (wanted * block)) * block
    parts = -(-span // part)
    rows = max(16, 1 << (group - 1).bit_length())
    query = query.contiguous()
    sums = torch.empty((pairs, parts, group, width), dtype=torch.float32, device=query.device)
    totals = torch.empty((2, pairs, parts, group), dtype=torch.float32, device=query.device)
    speaks = supports_ptx(query.device)
    # scores are powers of two, and those that are bounded come as twice themselves by the bound
    factor = scaling * math.log2(math.e) * (2 / softcap if softcap else 1)
    if isinstance(key, Int8Vectors):
        kernel, given, strides, more = _in_8_bits(key, value, query)
    else:
        kernel, given, strides, more = _in_16_bits(key, value)
    kernel[(pairs, parts)](
        query,
        *given,
        mask,
        sums,
        totals,
        totals[1],
        *strides,
        mask.stride(0) if mask.shape[0] > 1 else 0,
        key_heads,
        group,
        span,
        part,
        torch.finfo(mask.dtype).min / 2,
        factor,
        (softcap or 1.0) * math.log2(math.e),
        bounded=softcap is not None,
        power=POWER if speaks else None,
        inverse=INVERSE if speaks else None,
        **more,
        rows=rows,
        width=width,
        block=block,
        positions=1 << (part - 1).bit_length(),
        num_warps=4,
        num_stages=3,
    )
    output = torch.empty_like(query)
    join[(pairs,)](
        sums, totals, totals[1], output, group, parts, rows=rows, width=width, num_warps=4
    )
    return output


@cache
def _rotation(width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the rotation's even columns and then its odd ones, as the kernel has queries."""
    whole = hadamard_matrix(width, dtype, device)
    return torch.cat([whole[:, ::2], whole[:, 1::2]], dim=1)


def _in_16_bits(key: Any, value: Any) -> tuple[Any, ...]:
    """Return the kernel, its keys and values, how they lie, and what else it is compiled with."""
    return attend, (key, value), (*key.stride()[:3], *value.stride()[:3]), {}


def _in_8_bits(key: Any, value: Any, query: torch.Tensor) -> tuple[Any, ...]:
    """Return the same for keys and values in 8 bits."""
    pairs = [vectors.numbers.view(torch.int16) for vectors in (key, value)]
    width = query.shape[-1]
    given = (*pairs, key.scales, value.scales, _rotation(width, query.dtype, query.device))
    more = {
        "assembly": NUMBERS if supports_ptx(query.device) else None,
        "root": width**-0.5,
        "turned_at_once": min(width, TURNED_AT_ONCE),
    }
    return attend_in_int8, given, (*pairs[0].stride()[:2], *key.scales.stride()[:2]), more
