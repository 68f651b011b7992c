"""Keys and values in eight bits: integers, and for each vector what they are multiplied by.

A cache in 8 bits holds twice as many sequences as one in 16, and a step reads half as much of it. A
vector's largest number becomes 127, so that each number is off by a 254th of that at most; 8-bit
floating-point numbers would be off by up to a 16th of themselves.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch

from ja_instruct.generation.triton_kernels import WIDTHS, is_available, jit, tl

LARGEST = 127
# Added to an integer, to store it without a sign: the kernel of attention takes it off with what
# else makes a number of a byte
OFFSET = 128
# what a vector of zeros is divided by
LEAST = 1e-30


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

    def restored(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the vectors."""
        return ((self.numbers.float() - OFFSET) * self.scales[..., None]).to(dtype)


def in_int8(vectors: torch.Tensor) -> Int8Vectors:
    """Return vectors, (..., width), rounded to 8 bits each by its own largest number."""
    vectors = vectors.float()
    scales = vectors.abs().amax(dim=-1) / LARGEST
    numbers = (vectors / scales.clamp(min=LEAST)[..., None]).round()
    return Int8Vectors((numbers + OFFSET).to(torch.uint8), scales)


def takes(vectors: torch.Tensor) -> bool:
    """Return whether the kernel is for such vectors: of a head's width, where Triton is."""
    return is_available(vectors.device) and vectors.shape[-1] in WIDTHS


def store_step(
    new: tuple[torch.Tensor, torch.Tensor],
    kept: tuple[Int8Vectors, Int8Vectors],
    positions: torch.Tensor,
) -> None:
    """Write each sequence's newest keys and values into its place of a cache, in 8 bits.

    It is ``in_int8`` and an assignment in one kernel. There is nothing to wait for, and after a
    first call, which compiles, a CUDA graph can hold it.

    Args:
        new: Keys and values, each (sequences, heads, 1, width).
        kept: Keys and values, each (sequences, heads, length, width), contiguous.
        positions: Where, (sequences, 1), contiguous.
    """
    sequences, heads, _, width = new[0].shape
    (key_numbers, key_scales), (value_numbers, value_scales) = kept
    _store[(sequences, heads)](
        *new,
        key_numbers,
        key_scales,
        value_numbers,
        value_scales,
        positions,
        *new[0].stride()[:2],
        *new[1].stride()[:2],
        heads,
        key_numbers.shape[2],
        largest=LARGEST,
        offset=OFFSET,
        least=LEAST,
        width=width,
        num_warps=1,
    )


@jit()
def _store_rounded(
    vector: tl.tensor,
    numbers: tl.tensor,
    scales: tl.tensor,
    largest: tl.constexpr,
    offset: tl.constexpr,
    least: tl.constexpr,
) -> None:
    vector = vector.to(tl.float32)
    scale = tl.div_rn(tl.max(tl.abs(vector)), largest * 1.0)
    # adding what leaves no bits behind the point rounds halves to even, as PyTorch does
    rounded = tl.div_rn(vector, tl.maximum(scale, least)) + 12582912.0 - 12582912.0
    tl.store(numbers, (rounded + offset).to(tl.uint8))
    tl.store(scales, scale)


@jit()
def _store(
    keys: tl.tensor,
    values: tl.tensor,
    key_numbers: tl.tensor,
    key_scales: tl.tensor,
    value_numbers: tl.tensor,
    value_scales: tl.tensor,
    positions: tl.tensor,
    key_sequence: tl.tensor,
    key_head: tl.tensor,
    value_sequence: tl.tensor,
    value_head: tl.tensor,
    heads: tl.tensor,
    length: tl.tensor,
    largest: tl.constexpr,
    offset: tl.constexpr,
    least: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """Round a head's key and value, and store them."""
    sequence, head = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, width)
    line = (sequence * heads + head).to(tl.int64) * length + tl.load(positions + sequence)
    there = line * width + column
    key = tl.load(keys + sequence * key_sequence + head * key_head + column)
    _store_rounded(key, key_numbers + there, key_scales + line, largest, offset, least)
    value = tl.load(values + sequence * value_sequence + head * value_head + column)
    _store_rounded(value, value_numbers + there, value_scales + line, largest, offset, least)
