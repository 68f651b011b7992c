"""Keys and values in eight bits: integers, and for each vector what they are multiplied by.

A cache in 8 bits holds twice as many sequences as one in 16, and a step reads half as much of it. A
vector's largest number becomes 127, so that each number is off by a 254th of that at most.

In keys a few numbers are often many times as large as the others, so they are rotated before they
are rounded, and so are the queries that look for them.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple, Self

import torch

from ja_instruct.engine.kernels.triton import WIDTHS, is_available, jit, tl

LARGEST = 127
# Added to an integer, to store it without a sign: the kernel of attention takes it off with what
# else makes a number of a byte
OFFSET = 128
# what a vector of zeros is divided by
LEAST = 1e-30
STORED_AT_ONCE, RESTORED_AT_ONCE = 16, 64
# numbers of a vector, or the rotation would not find room in a processor's shared memory
TURNED_AT_ONCE = 128


class Int8Vectors(NamedTuple):
    """Vectors, each in integers with a scale of its own.

    Attributes:
        numbers: uint8, (..., width), 128 more than they stand for.
        scales: float32, (...).
    """

    numbers: torch.Tensor
    scales: torch.Tensor

    @classmethod
    def zeros(cls, shape: tuple[int, ...], device: torch.device) -> Self:
        """Return vectors of zeros."""
        return cls(
            torch.full(shape, OFFSET, dtype=torch.uint8, device=device),
            torch.zeros(shape[:-1], device=device),
        )

    def part(self, *index: slice) -> Int8Vectors:
        """Return a view of some of the vectors."""
        return Int8Vectors(self.numbers[index], self.scales[index])

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the vectors, (sequences, heads, tokens, width) on a GPU."""
        if _is_for_kernels(self.numbers):
            return _dequantize(self, dtype)
        return ((self.numbers.float() - OFFSET) * self.scales[..., None]).to(dtype)


@cache
def hadamard_matrix(width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return a matrix of 1 and -1, (width, width), that rotates, and stretches by the width's root.

    Where the width is no power of 2, it rotates blocks of a width that is, and is 0 between them.

    It is Hadamard's, with some rows negative: what stands out in one number of a vector, as in the
    keys of many models, is spread over all, so that it takes no precision from the others (QuaRot,
    arXiv:2404.00456). Products of two vectors that are both rotated are those of before.

    Args:
        width: Of the vectors.
        dtype: Of the numbers.
        device: Where they are to be.
    """
    signs = torch.ones(1, 1)
    while len(signs) < _block(width):
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
    signs = torch.kron(torch.eye(width // _block(width)), signs)
    # half of the rows, and without a pattern that is Hadamard's own
    negative = torch.arange(width) * 40503 % 2**16 >= 2**15
    signs[negative] *= -1
    return signs.to(device, dtype)


def _block(width: int) -> int:
    """Return the largest power of 2 that a width is a multiple of."""
    return width & -width


def hadamard_rotate(vectors: torch.Tensor) -> torch.Tensor:
    """Return vectors, (..., width), rotated."""
    width = vectors.shape[-1]
    root: float = _block(width) ** -0.5
    return vectors @ hadamard_matrix(width, vectors.dtype, vectors.device) * root


def quantize_int8(vectors: torch.Tensor) -> Int8Vectors:
    """Return vectors, (..., width), rounded to 8 bits each by its own largest number."""
    vectors = vectors.float()
    scales = vectors.abs().amax(dim=-1) * (1 / LARGEST)
    numbers = (vectors / scales.clamp(min=LEAST)[..., None]).round()
    return Int8Vectors((numbers + OFFSET).to(torch.uint8), scales)


def supports_store(vectors: torch.Tensor) -> bool:
    """Return whether a kernel stores such vectors: in 16 bits, of a head's width, on CUDA."""
    return vectors.dtype in (torch.bfloat16, torch.float16) and _is_for_kernels(vectors)


def _is_for_kernels(vectors: torch.Tensor) -> bool:
    return is_available(vectors.device) and vectors.shape[-1] in WIDTHS


def store_int8(
    new: tuple[torch.Tensor, torch.Tensor],
    kept: tuple[Int8Vectors, Int8Vectors],
    positions: torch.Tensor,
) -> None:
    """Write sequences' new keys and values into their places of a cache, in 8 bits.

    One kernel does ``quantize_int8`` of the rotated keys and of the values, and the assignment. It
    needs no host synchronization, and after a first call, which compiles, a CUDA graph can hold it.

    Args:
        new: Keys and values, each (sequences, heads, tokens, width), the numbers of a vector one
            behind the other.
        kept: Keys and values, each (sequences, heads, length, width), contiguous.
        positions: Where, (sequences, tokens).
    """
    sequences, heads, tokens, width = new[0].shape
    keys, values = kept
    _store[(-(-sequences * tokens // STORED_AT_ONCE), heads)](
        *new,
        hadamard_matrix(width, new[0].dtype, new[0].device),
        *keys,
        *values,
        positions.contiguous(),
        *new[0].stride()[:3],
        *new[1].stride()[:3],
        sequences * tokens,
        tokens,
        heads,
        keys.numbers.shape[2],
        root=width**-0.5,
        inverse=1 / LARGEST,
        offset=OFFSET,
        least=LEAST,
        at_once=STORED_AT_ONCE,
        turned_at_once=min(width, TURNED_AT_ONCE),
        width=width,
        num_warps=4,
    )


def _dequantize(vectors: Int8Vectors, dtype: torch.dtype) -> torch.Tensor:
    numbers, scales = vectors
    sequences, heads, tokens, width = numbers.shape
    output = torch.empty(numbers.shape, dtype=dtype, device=numbers.device)
    _restore[(-(-tokens // RESTORED_AT_ONCE), heads, sequences)](
        numbers,
        scales,
        output,
        *numbers.stride()[:2],
        *scales.stride()[:2],
        heads,
        tokens,
        offset=OFFSET,
        width=width,
        at_once=RESTORED_AT_ONCE,
    )
    return output


@jit()
def _store_rounded(
    vectors: tl.tensor,
    numbers: tl.tensor,
    scales: tl.tensor,
    there: tl.tensor,
    inside: tl.tensor,
    inverse: tl.constexpr,
    offset: tl.constexpr,
    least: tl.constexpr,
    width: tl.constexpr,
) -> None:
    scale = tl.max(tl.abs(vectors), axis=1) * inverse
    # adding what leaves no bits behind the point rounds halves to even, as PyTorch does
    rounded = tl.div_rn(vectors, tl.maximum(scale, least)[:, None]) + 12582912.0 - 12582912.0
    to = numbers + there[:, None] * width + tl.arange(0, width)[None, :]
    tl.store(to, (rounded + offset).to(tl.uint8), mask=inside[:, None])
    tl.store(scales + there, scale, mask=inside)


@jit("places", "tokens", "length")
def _store(
    keys: tl.tensor,
    values: tl.tensor,
    rotating: tl.tensor,
    key_numbers: tl.tensor,
    key_scales: tl.tensor,
    value_numbers: tl.tensor,
    value_scales: tl.tensor,
    positions: tl.tensor,
    key_sequence: tl.tensor,
    key_head: tl.tensor,
    key_token: tl.tensor,
    value_sequence: tl.tensor,
    value_head: tl.tensor,
    value_token: tl.tensor,
    places: tl.tensor,
    tokens: tl.tensor,
    heads: tl.tensor,
    length: tl.tensor,
    root: tl.constexpr,
    inverse: tl.constexpr,
    offset: tl.constexpr,
    least: tl.constexpr,
    at_once: tl.constexpr,
    turned_at_once: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """Rotate a head's keys of some tokens, round them and the values, and store them."""
    place = tl.program_id(0) * at_once + tl.arange(0, at_once)
    head = tl.program_id(1)
    inside = place < places
    sequence, token = place // tokens, place % tokens
    column = tl.arange(0, width)
    position = tl.load(positions + place, mask=inside, other=0)
    there = (sequence * heads + head).to(tl.int64) * length + position
    here = sequence * key_sequence + head * key_head + token * key_token
    turned = tl.zeros((at_once, width), tl.float32)
    for first in tl.static_range(0, width, turned_at_once):
        number = first + tl.arange(0, turned_at_once)
        key = tl.load(keys + here[:, None] + number[None, :], mask=inside[:, None], other=0.0)
        turn = tl.load(rotating + number[:, None] * width + column[None, :])
        turned = tl.dot(key, turn, turned)
    turned *= root
    _store_rounded(turned, key_numbers, key_scales, there, inside, inverse, offset, least, width)
    here = sequence * value_sequence + head * value_head + token * value_token
    value = tl.load(values + here[:, None] + column[None, :], mask=inside[:, None], other=0.0)
    _store_rounded(
        value.to(tl.float32),
        value_numbers,
        value_scales,
        there,
        inside,
        inverse,
        offset,
        least,
        width,
    )


@jit("tokens")
def _restore(
    numbers: tl.tensor,
    scales: tl.tensor,
    output: tl.tensor,
    numbers_sequence: tl.tensor,
    numbers_head: tl.tensor,
    scales_sequence: tl.tensor,
    scales_head: tl.tensor,
    heads: tl.tensor,
    tokens: tl.tensor,
    offset: tl.constexpr,
    width: tl.constexpr,
    at_once: tl.constexpr,
) -> None:
    """Restore some tokens of a head."""
    token = tl.program_id(0) * at_once + tl.arange(0, at_once)
    head, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    inside = token < tokens
    there = token[:, None] * width + tl.arange(0, width)[None, :]
    numbers += sequence * numbers_sequence + head * numbers_head
    scales += sequence * scales_sequence + head * scales_head
    number = tl.load(numbers + there, mask=inside[:, None], other=offset).to(tl.float32) - offset
    scale = tl.load(scales + token, mask=inside, other=0.0)
    output += (sequence * heads + head) * tokens * width
    restored = (number * scale[:, None]).to(output.dtype.element_ty)
    tl.store(output + there, restored, mask=inside[:, None])
