"""The kernels of ``decode_attention``: a part of a sequence's keys, in 16 bits or int8, and a sum.

Scores are to the base 2, because a GPU computes powers of 2. The kernels stand apart from
``decode_attention``, because both together would exceed 350 lines.
"""

from __future__ import annotations

from typing import Any

from ja_instruct.engine.kernels.triton import jit, tl

# Converts four bytes, stored with an offset of 128, to four float16 numbers: after the byte 0x64 a
# byte reads as its value plus 1024. The low bytes of two int16 first, then the high ones.
NUMBERS = """{
.reg .b32 offset;
mov.b32 offset, 0xe480e480;
prmt.b32 $0, $2, 0x64646464, 0x4240;
prmt.b32 $1, $2, 0x64646464, 0x4341;
add.f16x2 $0, $0, offset;
add.f16x2 $1, $1, offset;
}"""
# flush subnormal results to zero, which is faster
POWER = "ex2.approx.ftz.f32 $0, $1;"
INVERSE = "rcp.approx.ftz.f32 $0, $1;"


@jit()
def _power(x: tl.tensor, power: tl.constexpr) -> tl.tensor:
    if power is None:
        return tl.exp2(x)
    return tl.inline_asm_elementwise(power, "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@jit()
def _inverse(x: tl.tensor, inverse: tl.constexpr) -> tl.tensor:
    if inverse is None:
        return 1 / x
    return tl.inline_asm_elementwise(inverse, "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@jit()
def _numbers(pairs: tl.tensor, assembly: tl.constexpr) -> Any:
    """Return the first byte of each pair, and the second, as float16."""
    if assembly is not None:
        first, second = tl.inline_asm_elementwise(
            assembly, "=r,=r,r", [pairs], dtype=(tl.float16, tl.float16), is_pure=True, pack=2
        )
    else:
        whole = pairs.to(tl.int32)
        first = ((whole & 255) - 128).to(tl.float16)
        second = (((whole >> 8) & 255) - 128).to(tl.float16)
    return first, second


@jit()
def _find_part(
    mask: tl.tensor,
    mask_sequence: tl.tensor,
    key_heads: tl.tensor, span: tl.tensor, part: tl.tensor, hidden: tl.tensor,
    block: tl.constexpr, positions: tl.constexpr,
) -> Any:  # fmt: skip
    """Return a program's sequence, mask and key head, and its part of the span.

    Of the part: its end, the first block that contains an unmasked position, and the position after
    the last unmasked one.
    """
    sequence = (tl.program_id(0) // key_heads).to(tl.int64)
    head = tl.program_id(0) % key_heads
    first = tl.program_id(1) * part
    last = tl.minimum(first + part, span)
    mask += sequence * mask_sequence
    place = first + tl.arange(0, positions)
    added = tl.load(mask + place, mask=place < last, other=float("-inf")).to(tl.float32)
    seen = added > hidden
    begin = tl.min(tl.where(seen, place, last)) // block * block
    return sequence, mask, head, last, begin, tl.max(tl.where(seen, place + 1, first))


@jit()
def _weigh(
    score: tl.tensor, added: tl.tensor, high: tl.tensor, total: tl.tensor, bound: tl.tensor,
    bounded: tl.constexpr, power: tl.constexpr, inverse: tl.constexpr,
) -> Any:  # fmt: skip
    """Return the weights of scores, the factor for earlier weights, and the new maximum and total.

    With a soft cap, ``score`` is 2·s/cap.
    """
    if bounded:
        # cap · tanh(s/cap)
        score = bound - 2 * bound * _inverse(_power(score, power) + 1, inverse)
    score += added * 1.4426950408889634
    higher = tl.maximum(high, tl.max(score, axis=1))
    weight = _power(score - higher[:, None], power)
    shrunk = _power(high - higher, power)
    return weight, shrunk, higher, total * shrunk + tl.sum(weight, axis=1)


@jit()
def attend(
    query: tl.tensor, key: tl.tensor, value: tl.tensor, mask: tl.tensor, sums: tl.tensor,
    largest: tl.tensor, totals: tl.tensor,
    key_sequence: tl.tensor, key_head: tl.tensor, key_position: tl.tensor,
    value_sequence: tl.tensor, value_head: tl.tensor, value_position: tl.tensor,
    mask_sequence: tl.tensor,
    key_heads: tl.tensor, group: tl.tensor, span: tl.tensor, part: tl.tensor, hidden: tl.tensor,
    factor: tl.tensor, bound: tl.tensor,
    bounded: tl.constexpr, power: tl.constexpr, inverse: tl.constexpr, rows: tl.constexpr,
    width: tl.constexpr, block: tl.constexpr, positions: tl.constexpr,
) -> None:  # fmt: skip
    """Attend to a part of a sequence's keys with the queries that share a key head."""
    pair = tl.program_id(0)
    sequence, mask, head, last, begin, end = _find_part(
        mask, mask_sequence, key_heads, span, part, hidden, block, positions
    )
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
        added = tl.load(mask + at, mask=inside, other=float("-inf")).to(tl.float32)
        weight, shrunk, high, total = _weigh(
            tl.dot(q, k) * factor, added[None, :], high, total, bound, bounded, power, inverse
        )
        v = tl.load(
            value + at[:, None] * value_position + column[None, :], mask=inside[:, None], other=0.0
        )
        summed = tl.dot(weight.to(v.dtype), v, summed * shrunk[:, None])
    line = (pair * tl.num_programs(1) + tl.program_id(1)) * group + row
    tl.store(largest + line, high, mask=row < group)
    tl.store(totals + line, total, mask=row < group)
    tl.store(sums + line[:, None] * width + column[None, :], summed, mask=(row < group)[:, None])


@jit()
def attend_in_int8(
    query: tl.tensor, key: tl.tensor, value: tl.tensor, key_scales: tl.tensor,
    value_scales: tl.tensor, rotating: tl.tensor, mask: tl.tensor, sums: tl.tensor,
    largest: tl.tensor, totals: tl.tensor,
    pairs_sequence: tl.tensor, pairs_head: tl.tensor, scale_sequence: tl.tensor,
    scale_head: tl.tensor, mask_sequence: tl.tensor,
    key_heads: tl.tensor, group: tl.tensor, span: tl.tensor, part: tl.tensor, hidden: tl.tensor,
    factor: tl.tensor, bound: tl.tensor,
    bounded: tl.constexpr, power: tl.constexpr, inverse: tl.constexpr, assembly: tl.constexpr,
    root: tl.constexpr, turned_at_once: tl.constexpr, rows: tl.constexpr, width: tl.constexpr,
    block: tl.constexpr, positions: tl.constexpr,
) -> None:  # fmt: skip
    """Attend in the same way to int8 keys, which are read in pairs of bytes.

    The first numbers of the pairs and the second ones are separate tensors, and so are the sums,
    which are stored alternately. Queries are rotated like the keys.
    """
    half: tl.constexpr = width // 2
    pair = tl.program_id(0)
    sequence, mask, head, last, begin, end = _find_part(
        mask, mask_sequence, key_heads, span, part, hidden, block, positions
    )
    row = tl.arange(0, rows)
    column = tl.arange(0, half)
    there = (row < group)[:, None]
    # the rotated queries: the first numbers of the pairs, and the second
    q0 = tl.zeros((rows, half), tl.float32)
    q1 = tl.zeros((rows, half), tl.float32)
    for first_place in tl.static_range(0, width, turned_at_once):
        place = first_place + tl.arange(0, turned_at_once)
        here = query + (pair * group + row)[:, None] * width + place[None, :]
        q = tl.load(here, mask=there, other=0.0)
        turn = rotating + place[:, None] * width + column[None, :]
        q0 = tl.dot(q, tl.load(turn), q0)
        q1 = tl.dot(q, tl.load(turn + half), q1)
    q0 = (q0 * root).to(tl.float16)
    q1 = (q1 * root).to(tl.float16)
    key += sequence * pairs_sequence + head * pairs_head
    value += sequence * pairs_sequence + head * pairs_head
    key_scales += sequence * scale_sequence + head * scale_head
    value_scales += sequence * scale_sequence + head * scale_head
    high = tl.full((rows,), float("-inf"), tl.float32)
    total = tl.zeros((rows,), tl.float32)
    summed0 = tl.zeros((rows, half), tl.float32)
    summed1 = tl.zeros((rows, half), tl.float32)
    for start in range(begin, end, block):
        at = start + tl.arange(0, block)
        inside = at < last
        k0, k1 = _numbers(
            tl.load(key + at[None, :] * half + column[:, None], mask=inside[None, :], other=0),
            assembly,
        )
        scale = tl.load(key_scales + at, mask=inside, other=0.0) * factor
        score = tl.dot(q1, k1, tl.dot(q0, k0)) * scale[None, :]
        added = tl.load(mask + at, mask=inside, other=float("-inf")).to(tl.float32)
        weight, shrunk, high, total = _weigh(
            score, added[None, :], high, total, bound, bounded, power, inverse
        )
        v0, v1 = _numbers(
            tl.load(value + at[:, None] * half + column[None, :], mask=inside[:, None], other=0),
            assembly,
        )
        scale = tl.load(value_scales + at, mask=inside, other=0.0).to(tl.float16)
        weight = weight.to(tl.float16)
        summed0 = tl.dot(weight, v0 * scale[:, None], summed0 * shrunk[:, None])
        summed1 = tl.dot(weight, v1 * scale[:, None], summed1 * shrunk[:, None])
    line = (pair * tl.num_programs(1) + tl.program_id(1)) * group + row
    tl.store(largest + line, high, mask=row < group)
    tl.store(totals + line, total, mask=row < group)
    to = sums + line[:, None] * width + 2 * column[None, :]
    tl.store(to, summed0, mask=there)
    tl.store(to + 1, summed1, mask=there)


@jit()
def join(
    sums: tl.tensor, largest: tl.tensor, totals: tl.tensor, output: tl.tensor, group: tl.tensor,
    parts: tl.tensor,
    rows: tl.constexpr, width: tl.constexpr,
) -> None:  # fmt: skip
    """Combine the parts of a key head's queries, always in the same order."""
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
        share = tl.exp2(tl.load(largest + line, mask=inside, other=0.0) - high)
        total += share * tl.load(totals + line, mask=inside, other=1.0)
        lines = sums + line[:, None] * width + column[None, :]
        summed += share[:, None] * tl.load(lines, mask=inside[:, None], other=0.0)
    here = (pair * group + row)[:, None] * width + column[None, :]
    result = summed / total[:, None]
    tl.store(output + here, result.to(output.dtype.element_ty), mask=inside[:, None])
