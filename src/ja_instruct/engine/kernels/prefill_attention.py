"""Prefill attention with a soft cap, whose scores never leave the registers.

With PyTorch's operations such scores are written and read seven times. Here a program keeps the
scores of a block of queries and a block of keys in registers, with a running softmax
(FlashAttention, arXiv:2205.14135). The heads that share a key head are rows of one block, so that
keys and mask are read once for all of them (arXiv:2305.13245). On an H200 it is 7 to 11 times as
fast as PyTorch's operations (``benchmarks/results/generation_kernels.json``). FlexAttention could
compute the same; it has not been measured for prefill.
"""

from __future__ import annotations

from math import e, log2
from typing import Any, NamedTuple

import torch

from ja_instruct.engine.kernels.triton import (
    is_available,
    jit,
    supports_heads,
    supports_ptx,
    tl,
    traits,
)

# Query heads per key head that fit into a block
MOST_HEADS = 32
# e^x = 2^(x · log2 e); the hardware computes powers of 2
LOG2_E = log2(e)
# These differ from chunk to chunk, and their values must not trigger a compilation
UNSPECIALIZED = ("tokens", "span", "key_blocks", "kinds_sequence")


class Blocks(NamedTuple):
    """Block sizes: ``rows`` are queries of all heads that share a key head."""

    rows: int
    keys: int
    warps: int
    stages: int


def supports_prefill(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Return whether the kernel supports a chunk: several tokens, 16 bits, Ampere or newer."""
    return (
        query.shape[2] > 1
        and query.shape[1] <= MOST_HEADS * key.shape[1]
        and supports_heads(query, key)
        and is_available(query.device)
        and supports_ptx(query.device)
    )


def choose_blocks(width: int, major: int) -> Blocks:
    """Return the block sizes for a head width and a major compute capability.

    A program's data must fit into its registers, 255 per thread, and into shared memory: 227 kB
    with capability 9.0 and 10.0, 99 kB with most others. Older instructions also keep the queries
    in registers.
    """
    if major in (9, 10):
        return Blocks(128, 64, 8, 2) if width > 128 else Blocks(128, 64, 8, 3)
    return Blocks(64, 32, 4, 2) if width > 128 else Blocks(128, 32, 8, 3)


def prefill_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float,
    softcap: float | None,
    blocks: Blocks | None = None,
) -> torch.Tensor:
    """Return the attention output of a chunk of tokens; ``grouped_attention`` gives the shapes.

    Sums are float32, and only the attention weights are rounded to the queries' dtype. The order of
    summation depends only on shapes, device and mask. After a first call, which compiles, a CUDA
    graph can capture it. Blocks of keys that the mask hides, by the lowest number of the queries'
    dtype, are not read at both ends of the span. Blocks to which it adds 0 are computed without it.

    Returns:
        (sequences, heads, tokens, width), a view of (sequences, tokens, heads, width). A token that
        attends to nothing gets arbitrary finite numbers.
    """
    sequences, heads, tokens, width = query.shape
    key_heads, span = key.shape[1:3]
    query, key, value, mask = (
        tensor if tensor.stride(-1) == 1 else tensor.contiguous()
        for tensor in (query, key, value, mask)
    )
    cut = blocks or choose_blocks(width, traits(query.device).major)
    group = heads // key_heads
    members = 1 << (group - 1).bit_length()
    shape = (mask.shape[0], -(-tokens // (cut.rows // members)), -(-span // cut.keys))
    kinds = torch.empty(shape, dtype=torch.int32, device=query.device)
    tiles = query.new_empty((*shape, cut.rows // members, cut.keys))
    _survey[shape[::-1]](
        mask, kinds, tiles, mask.stride(0), mask.stride(2), tokens, span,
        torch.finfo(query.dtype).min / 2,
        block_tokens=cut.rows // members, keys=cut.keys, num_warps=4,
    )  # fmt: skip
    output = query.new_empty((sequences, tokens, heads, width))
    _attend[(sequences * key_heads, shape[1])](
        query, key, value, kinds, tiles, output, *query.stride()[:3], *key.stride()[:3],
        *value.stride()[:3], shape[1] * shape[2] if len(mask) > 1 else 0, key_heads, group,
        tokens, span, shape[2], scaling / softcap if softcap else 1.0,
        (softcap or scaling) * LOG2_E, LOG2_E,
        bounded=softcap is not None, has_tanh=query.device.type == "cuda", members=members,
        rows=cut.rows, width=width, keys=cut.keys, num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip
    return output.transpose(1, 2)


@jit(*UNSPECIALIZED)
def _survey(
    mask: tl.tensor, kinds: tl.tensor, tiles: tl.tensor,
    mask_sequence: tl.tensor, mask_token: tl.tensor,
    tokens: tl.tensor, span: tl.tensor, hidden: tl.tensor,
    block_tokens: tl.constexpr, keys: tl.constexpr,
) -> None:  # fmt: skip
    """Classify a block of tokens and keys: 0 hidden, 1 partly masked, 2 unmasked.

    The mask of a partly masked block is copied to a contiguous, aligned tile.
    """
    row = tl.arange(0, block_tokens)
    column = tl.arange(0, keys)
    token = tl.program_id(1) * block_tokens + row
    at = tl.program_id(0) * keys + column
    outside = (at >= span)[None, :]
    # tokens beyond the last neither hide nor show anything; keys beyond the last are hidden
    real = (token < tokens)[:, None] & (at < span)[None, :]
    mask += tl.program_id(2).to(tl.int64) * mask_sequence
    places = mask + token.to(tl.int64)[:, None] * mask_token + at[None, :]
    added = tl.load(places, mask=real, other=0.0).to(tl.float32)
    some = tl.max(tl.max((real & (added > hidden)).to(tl.int32), axis=1), axis=0)
    changed = tl.max(tl.max(((added != 0.0) | outside).to(tl.int32), axis=1), axis=0)
    line = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0)
    line += tl.program_id(0)
    tl.store(kinds + line, some + 1 - changed)
    if changed == 1:
        # hidden keys get a finite bias, so that no row has only infinities
        bias = tl.where(outside, float("-inf"), tl.maximum(added, hidden))
        tile = tiles + line.to(tl.int64) * (block_tokens * keys)
        here = tile + row[:, None] * keys + column[None, :]
        tl.store(here, bias.to(tiles.dtype.element_ty))


@jit(*UNSPECIALIZED)
def _find_range(kinds: tl.tensor, key_blocks: tl.tensor) -> tuple[Any, Any, Any, Any]:
    """Return the first visible block of keys, the first and last unmasked, and the last visible.

    Ends are exclusive. Unmasked blocks that are not one run count as masked.
    """
    begin, end, low, high, plain = key_blocks, 0, key_blocks, 0, 0
    for first in range(0, key_blocks, 64):
        place = first + tl.arange(0, 64)
        kind = tl.load(kinds + place, mask=place < key_blocks, other=0)
        begin = tl.minimum(begin, tl.min(tl.where(kind > 0, place, key_blocks)))
        end = tl.maximum(end, tl.max(tl.where(kind > 0, place + 1, 0)))
        low = tl.minimum(low, tl.min(tl.where(kind == 2, place, key_blocks)))
        high = tl.maximum(high, tl.max(tl.where(kind == 2, place + 1, 0)))
        plain += tl.sum((kind == 2).to(tl.int32))
    one_run = plain == high - low
    return begin, tl.where(one_run, low, end), tl.where(one_run, high, end), end


@jit(*UNSPECIALIZED)
def _tanh(x: tl.tensor, has_tanh: tl.constexpr) -> tl.tensor:
    """Return tanh(x): the hardware's, accurate to 11 bits, or from exponentials."""
    if has_tanh:
        # one instruction instead of two and a division, and more accurate than 16-bit results
        y = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        y = 1 - 2 / (tl.exp(2 * x) + 1)
    return y


@jit(*UNSPECIALIZED)
def _read(
    q: tl.tensor, k_places: tl.tensor, v_places: tl.tensor, kind: tl.tensor,
    added_places: tl.tensor, inside: tl.tensor, highest: tl.tensor, total: tl.tensor,
    summed: tl.tensor, inner: tl.tensor, outer: tl.tensor, log2_e: tl.tensor,
    bounded: tl.constexpr, has_tanh: tl.constexpr, masked: tl.constexpr,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """Add a block of keys to the running softmax, whose scores are to the base 2."""
    k = tl.load(k_places, mask=inside[None, :], other=0.0) if masked else tl.load(k_places)
    score = tl.dot(q, k)
    if bounded:
        score = _tanh(score * inner, has_tanh)
    if masked:
        # unmasked blocks have no tile: its memory is uninitialized
        added = tl.where(tl.load(kind) == 2, 0.0, tl.load(added_places).to(tl.float32))
        score = score * outer + added * log2_e
        higher = tl.maximum(highest, tl.max(score, axis=1))
        weight = tl.exp2(score - higher[:, None])
    else:
        higher = tl.maximum(highest, tl.max(score, axis=1) * outer)
        weight = tl.exp2(score * outer - higher[:, None])
    shrunk = tl.exp2(highest - higher)
    total = total * shrunk + tl.sum(weight, axis=1)
    v = tl.load(v_places, mask=inside[:, None], other=0.0) if masked else tl.load(v_places)
    summed = tl.dot(weight.to(v.dtype), v, summed * shrunk[:, None])
    return higher, total, summed


@jit(*UNSPECIALIZED)
def _attend(
    query: tl.tensor, key: tl.tensor, value: tl.tensor, kinds: tl.tensor, tiles: tl.tensor,
    output: tl.tensor,
    query_sequence: tl.tensor, query_head: tl.tensor, query_token: tl.tensor,
    key_sequence: tl.tensor, key_head: tl.tensor, key_position: tl.tensor,
    value_sequence: tl.tensor, value_head: tl.tensor, value_position: tl.tensor,
    kinds_sequence: tl.tensor,
    key_heads: tl.tensor, group: tl.tensor, tokens: tl.tensor, span: tl.tensor,
    key_blocks: tl.tensor, inner: tl.tensor, outer: tl.tensor, log2_e: tl.tensor,
    bounded: tl.constexpr, has_tanh: tl.constexpr, members: tl.constexpr, rows: tl.constexpr,
    width: tl.constexpr, keys: tl.constexpr,
) -> None:  # fmt: skip
    """Attend to one key head of a sequence with a block of tokens of the heads that share it."""
    sequence = (tl.program_id(0) // key_heads).to(tl.int64)
    head = tl.program_id(0) % key_heads
    # the last tokens first, because they attend to most keys
    block = tl.num_programs(1) - 1 - tl.program_id(1)
    line = sequence * kinds_sequence + block * key_blocks
    begin, low, high, end = _find_range(kinds + line, key_blocks)
    row = tl.arange(0, rows)
    column = tl.arange(0, width)
    token = block * (rows // members) + row // members
    member = row % members
    in_row = (token < tokens) & (member < group)
    query += sequence * query_sequence + head * group * query_head
    q_rows = member * query_head + token * query_token
    q = tl.load(query + q_rows[:, None] + column[None, :], mask=in_row[:, None], other=0.0)
    key += sequence * key_sequence + head * key_head
    value += sequence * value_sequence + head * value_head
    at = tl.arange(0, keys)
    k_places = key + at[None, :] * key_position + column[:, None]
    v_places = value + at[:, None] * value_position + column[None, :]
    tile_size: tl.constexpr = rows // members * keys
    added_places = tiles + line * tile_size + (row // members)[:, None] * keys + at[None, :]
    highest = tl.full((rows,), float("-inf"), tl.float32)
    total = tl.zeros((rows,), tl.float32)
    summed = tl.zeros((rows, width), tl.float32)
    for step in range(begin, end - (high - low)):
        # the blocks before and after the unmasked ones
        place = tl.where(step < low, step, step + (high - low))
        highest, total, summed = _read(
            q, k_places + place * keys * key_position, v_places + place * keys * value_position,
            kinds + line + place, added_places + place * tile_size, place * keys + at < span,
            highest, total, summed, inner, outer, log2_e, bounded, has_tanh, True,
        )  # fmt: skip
    for place in range(low, high):
        highest, total, summed = _read(
            q, k_places + place * keys * key_position, v_places + place * keys * value_position,
            None, None, None,
            highest, total, summed, inner, outer, log2_e, bounded, has_tanh, False,
        )  # fmt: skip
    result = summed / tl.where(total > 0, total, 1.0)[:, None]
    here = (sequence * tokens + token) * (key_heads * group) + head * group + member
    places = output + here[:, None] * width + column[None, :]
    tl.store(places, result.to(output.dtype.element_ty), mask=in_row[:, None])
