"""Attention of one token a sequence in one reading of keys and values, up to where they reach.

Written with PyTorch's operations a step writes and reads its scores five times, and reads keys as
far as the longest sequence goes. Here each program reads a part of one sequence's keys of one head
and keeps a running softmax (FlashAttention, arXiv:2205.14135; over parts: Flash-Decoding).
"""

from __future__ import annotations

import torch

from ja_instruct.generation.triton_kernels import jit, takes_heads, tl, traits

# numbers of keys that a program reads at once, 16 kB of them in 16 bits
TILE = 64 * 128
# positions that a program looks through for what is visible
LONGEST_PART = 4096


def takes(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Return whether the kernel is for such a step: one token a sequence, in 16 bits, on CUDA."""
    return query.shape[2] == 1 and takes_heads(query, key)


def decode_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:
    """Return what each sequence's token attends to; see ``grouped_attention``.

    The order of summing depends on shapes and device alone. There is nothing to wait for, and after
    a first call, which compiles, a CUDA graph can hold it.

    Args:
        query: (sequences, heads, 1, width); the heads that share a key head follow each other.
        key: (sequences, key heads, span, width), also a view of a longer cache.
        value: As the keys.
        mask: Added to the scores, (sequences or 1, 1, 1, span); where it is the least number of its
            type at both ends, keys are not read.
        scaling: Of the scores.
        softcap: What scores are bounded by; None leaves them.

    Returns:
        (sequences, heads, 1, width).
    """
    sequences, heads, _, width = query.shape
    key_heads, span = key.shape[1:3]
    group, pairs = heads // key_heads, sequences * key_heads
    block = max(16, TILE // width)
    # about four programs a processor, and none with more to look through than it can
    wanted = max(-(-4 * traits(query.device).processors // pairs), -(-span // LONGEST_PART))
    part = -(-span // (wanted * block)) * block
    parts = -(-span // part)
    rows = max(16, 1 << (group - 1).bit_length())
    query = query.contiguous()
    sums = torch.empty((pairs, parts, group, width), dtype=torch.float32, device=query.device)
    totals = torch.empty((2, pairs, parts, group), dtype=torch.float32, device=query.device)
    _attend[(pairs, parts)](
        query,
        key,
        value,
        mask,
        sums,
        totals,
        totals[1],
        *key.stride()[:3],
        *value.stride()[:3],
        mask.stride(0) if mask.shape[0] > 1 else 0,
        key_heads,
        group,
        span,
        part,
        torch.finfo(mask.dtype).min / 2,
        scaling,
        softcap or 1.0,
        bounded=softcap is not None,
        rows=rows,
        width=width,
        block=block,
        positions=1 << (part - 1).bit_length(),
        num_warps=4,
        num_stages=3,
    )
    output = torch.empty_like(query)
    _join[(pairs,)](
        sums, totals, totals[1], output, group, parts, rows=rows, width=width, num_warps=4
    )
    return output


@jit()
def _attend(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    mask: tl.tensor,
    sums: tl.tensor,
    largest: tl.tensor,
    totals: tl.tensor,
    key_sequence: tl.tensor,
    key_head: tl.tensor,
    key_position: tl.tensor,
    value_sequence: tl.tensor,
    value_head: tl.tensor,
    value_position: tl.tensor,
    mask_sequence: tl.tensor,
    key_heads: tl.tensor,
    group: tl.tensor,
    span: tl.tensor,
    part: tl.tensor,
    hidden: tl.tensor,
    scaling: tl.tensor,
    softcap: tl.tensor,
    bounded: tl.constexpr,
    rows: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    positions: tl.constexpr,
) -> None:
    """Attend to a part of a sequence's keys with the queries of one key head."""
    pair = tl.program_id(0)
    sequence = (pair // key_heads).to(tl.int64)
    head = pair % key_heads
    first = tl.program_id(1) * part
    last = tl.minimum(first + part, span)
    mask += sequence * mask_sequence
    place = first + tl.arange(0, positions)
    added = tl.load(mask + place, mask=place < last, other=float("-inf")).to(tl.float32)
    seen = added > hidden
    begin = tl.min(tl.where(seen, place, last)) // block * block
    end = tl.max(tl.where(seen, place + 1, first))
    row = tl.arange(0, rows)
    column = tl.arange(0, width)
    here = (pair * group + row)[:, None] * width + column[None, :]
    q = tl.load(query + here, mask=(row < group)[:, None], other=0.0)
    key += sequence * key_sequence + head * key_head
    value += sequence * value_sequence + head * value_head
    high = tl.full((rows,), float("-inf"), tl.float32)
    total = tl.zeros((rows,), tl.float32)
    summed = tl.zeros((rows, width), tl.float32)
    for start in range(begin, end, block):
        at = start + tl.arange(0, block)
        inside = at < last
        k = tl.load(
            key + at[None, :] * key_position + column[:, None], mask=inside[None, :], other=0.0
        )
        score = tl.dot(q, k) * scaling
        if bounded:
            # the hyperbolic tangent
            score = softcap * (1 - 2 / (tl.exp(2 * score / softcap) + 1))
        score += tl.load(mask + at, mask=inside, other=float("-inf")).to(tl.float32)[None, :]
        higher = tl.maximum(high, tl.max(score, axis=1))
        weight = tl.exp(score - higher[:, None])
        shrunk = tl.exp(high - higher)
        total = total * shrunk + tl.sum(weight, axis=1)
        v = tl.load(
            value + at[:, None] * value_position + column[None, :], mask=inside[:, None], other=0.0
        )
        summed = tl.dot(weight.to(v.dtype), v, summed * shrunk[:, None])
        high = higher
    line = (pair * tl.num_programs(1) + tl.program_id(1)) * group + row
    tl.store(largest + line, high, mask=row < group)
    tl.store(totals + line, total, mask=row < group)
    tl.store(sums + line[:, None] * width + column[None, :], summed, mask=(row < group)[:, None])


@jit()
def _join(
    sums: tl.tensor,
    largest: tl.tensor,
    totals: tl.tensor,
    output: tl.tensor,
    group: tl.tensor,
    parts: tl.tensor,
    rows: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """Join the parts of a key head's queries, always in the same order."""
    pair = tl.program_id(0)
    row = tl.arange(0, rows)
    column = tl.arange(0, width)
    inside = row < group
    high = tl.full((rows,), float("-inf"), tl.float32)
    for part in range(parts):
        line = (pair * parts + part) * group + row
        high = tl.maximum(high, tl.load(largest + line, mask=inside, other=0.0))
    total = tl.zeros((rows,), tl.float32)
    summed = tl.zeros((rows, width), tl.float32)
    for part in range(parts):
        line = (pair * parts + part) * group + row
        share = tl.exp(tl.load(largest + line, mask=inside, other=0.0) - high)
        total += share * tl.load(totals + line, mask=inside, other=1.0)
        lines = sums + line[:, None] * width + column[None, :]
        summed += share[:, None] * tl.load(lines, mask=inside[:, None], other=0.0)
    here = (pair * group + row)[:, None] * width + column[None, :]
    result = summed / total[:, None]
    tl.store(output + here, result.to(output.dtype.element_ty), mask=inside[:, None])
