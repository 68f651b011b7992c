"""Decoding attention: one query token per sequence, which reads keys and values once.

With PyTorch's operations a step writes and reads its scores five times, and reads the keys of the
longest sequence for all. Here each program reads a part of one sequence's keys of one head and
keeps a running softmax (FlashAttention, arXiv:2205.14135; over parts: Flash-Decoding).
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

# Key elements that a program reads at once
TILE = 64 * 128
# About so many programs per processor, and at least so many parts per key head: with fewer, the
# last programs keep the others waiting
PROGRAMS, LEAST_PARTS = 4, 2
# Positions whose mask a program reads at most
LONGEST_PART = 4096


def supports_decode(query: torch.Tensor, key: torch.Tensor | Int8Vectors) -> bool:
    """Return whether the kernel supports a step: one token per sequence, in 16 bits, on CUDA.

    Keys and values may be int8.
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
    """Return the attention output, (sequences, heads, 1, width).

    ``grouped_attention`` gives the shapes. The positions of a head of an int8 cache are contiguous.
    Keys are not read at both ends of the span where the mask is the lowest number of its dtype. The
    order of summation depends only on shapes and device. After a first call, which compiles, a CUDA
    graph can capture it.
    """
    sequences, heads, _, width = query.shape
    key_heads, span = (key.scales if isinstance(key, Int8Vectors) else key).shape[1:3]
    group, pairs = heads // key_heads, sequences * key_heads
    block = max(16, TILE // width)
    # no part may be longer than LONGEST_PART
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
    has_ptx = supports_ptx(query.device)
    # scores are to the base 2, and with a soft cap the kernel expects 2 * score / cap
    factor = scaling * math.log2(math.e) * (2 / softcap if softcap else 1)
    if isinstance(key, Int8Vectors):
        kernel, given, strides, more = _int8_arguments(key, value, query)
    else:
        kernel, given, strides, more = _arguments(key, value)
    kernel[(pairs, parts)](
        query, *given, mask, sums, totals, totals[1], *strides,
        mask.stride(0) if mask.shape[0] > 1 else 0, key_heads, group, span, part,
        torch.finfo(mask.dtype).min / 2, factor, (softcap or 1.0) * math.log2(math.e),
        bounded=softcap is not None, power=POWER if has_ptx else None,
        inverse=INVERSE if has_ptx else None, **more, rows=rows, width=width, block=block,
        positions=1 << (part - 1).bit_length(), num_warps=4, num_stages=3,
    )  # fmt: skip
    output = torch.empty_like(query)
    join[(pairs,)](
        sums, totals, totals[1], output, group, parts,
        rows=rows, width=width, num_warps=4,
    )  # fmt: skip
    return output


@cache
def _rotation(width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the Hadamard matrix's even columns and then its odd ones, as the kernel pairs them."""
    whole = hadamard_matrix(width, dtype, device)
    return torch.cat([whole[:, ::2], whole[:, 1::2]], dim=1)


def _arguments(key: torch.Tensor, value: Any) -> tuple[Any, ...]:
    """Return the kernel, its keys and values, their strides, and further arguments."""
    return attend, (key, value), (*key.stride()[:3], *value.stride()[:3]), {}


def _int8_arguments(key: Int8Vectors, value: Any, query: torch.Tensor) -> tuple[Any, ...]:
    """Return the same for int8 keys and values."""
    pairs = [vectors.numbers.view(torch.int16) for vectors in (key, value)]
    width = query.shape[-1]
    given = (*pairs, key.scales, value.scales, _rotation(width, query.dtype, query.device))
    more = {
        "assembly": NUMBERS if supports_ptx(query.device) else None,
        "root": width**-0.5,
        "turned_at_once": min(width, TURNED_AT_ONCE),
    }
    return attend_in_int8, given, (*pairs[0].stride()[:2], *key.scales.stride()[:2]), more
