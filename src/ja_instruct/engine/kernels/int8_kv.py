"""Int8 KV cache: keys and values as integers with a scale per vector.

An int8 cache holds twice as many sequences as a 16-bit one, and a step reads half as much of it. A
vector's largest absolute number becomes 127, so the error of each number is at most a 254th of it.

Keys often have a few numbers that are many times as large as the others, so they are rotated before
they are rounded, and so are the queries.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple, Self

import torch

from ja_instruct.engine.kernels.triton import WIDTHS, is_available, jit, tl

LARGEST = 127
# Added to store integers unsigned; the attention kernel subtracts it while it converts bytes
OFFSET = 128
# Divisor of a vector of zeros
LEAST = 1e-30
STORED_AT_ONCE, DEQUANTIZED_AT_ONCE = 16, 64
# With more numbers of a vector at once the rotation would not fit into shared memory
TURNED_AT_ONCE = 128


class Int8Vectors(NamedTuple):
    """Vectors of integers, each with its scale.

    Attributes:
        numbers: uint8, (..., width), with ``OFFSET`` added.
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
        """Return the vectors; on a GPU they must be (sequences, heads, tokens, width)."""
        if _is_for_kernels(self.numbers):
            return _dequantize(self, dtype)
        return ((self.numbers.float() - OFFSET) * self.scales[..., None]).to(dtype)


@cache
def hadamard_matrix(width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return a Hadamard matrix with some rows negated, (width, width), of 1 and -1.

    Divided by the root of the width it is a rotation. It spreads an outlier in one number of a
    vector over all of them, so that the others keep their precision (QuaRot, arXiv:2404.00456), and
    leaves the product of two rotated vectors unchanged. If the width is not a power of 2, blocks of
    the largest power of 2 that divides it are rotated, with 0 between them.
    """
    signs = torch.ones(1, 1)
    while len(signs) < _block(width):
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
    signs = torch.kron(torch.eye(width // _block(width)), signs)
    # half of the rows, in an order that is unlike the matrix's own pattern
    negative = torch.arange(width) * 40503 % 2**16 >= 2**15
    signs[negative] *= -1
    return signs.to(device, dtype)


def _block(width: int) -> int:
    """Return the largest power of 2 that divides a width."""
    return width & -width


def hadamard_rotate(vectors: torch.Tensor) -> torch.Tensor:
    """Return vectors, (..., width), rotated."""
    width = vectors.shape[-1]
    root: float = _block(width) ** -0.5
    return vectors @ hadamard_matrix(width, vectors.dtype, vectors.device) * root


def quantize_int8(vectors: torch.Tensor) -> Int8Vectors:
    """Return vectors, (..., width), rounded to int8, each with its own scale."""
    vectors = vectors.float()
    scales = vectors.abs().amax(dim=-1) * (1 / LARGEST)
    numbers = (vectors / scales.clamp(min=LEAST)[..., None]).round()
    return Int8Vectors((numbers + OFFSET).to(torch.uint8), scales)


def supports_store(vectors: torch.Tensor) -> bool:
    """Return whether ``store_int8`` supports vectors: 16 bits, of some widths, on CUDA."""
    return vectors.dtype in (torch.bfloat16, torch.float16) and _is_for_kernels(vectors)


def _is_for_kernels(vectors: torch.Tensor) -> bool:
    return is_available(vectors.device) and vectors.shape[-1] in WIDTHS


def store_int8(
    new: tuple[torch.Tensor, torch.Tensor],
    kept: tuple[Int8Vectors, Int8Vectors],
    positions: torch.Tensor,
) -> None:
    """Quantize new keys and values to int8 and store them in a cache.

    The kernel rotates the keys and does what ``quantize_int8`` does. It needs no host
    synchronization, and after a first call, which compiles, a CUDA graph can capture it.

    Args:
        new: Keys and values, each (sequences, heads, tokens, width), dense in the width.
        kept: Keys and values of the cache, each (sequences, heads, length, width), contiguous.
        positions: In the cache, (sequences, tokens).
    """
    sequences, heads, tokens, width = new[0].shape
    keys, values = kept
    _store[(-(-sequences * tokens // STORED_AT_ONCE), heads)](
        *new, hadamard_matrix(width, new[0].dtype, new[0].device), *keys, *values,
        positions.contiguous(), *new[0].stride()[:3], *new[1].stride()[:3], sequences * tokens,
        tokens, heads, keys.numbers.shape[2],
        root=width**-0.5, inverse=1 / LARGEST, offset=OFFSET, least=LEAST,
        at_once=STORED_AT_ONCE, turned_at_once=min(width, TURNED_AT_ONCE), width=width,
        num_warps=4,
    )  # fmt: skip


def _dequantize(vectors: Int8Vectors, dtype: torch.dtype) -> torch.Tensor:
    numbers, scales = vectors
    sequences, heads, tokens, width = numbers.shape
    output = torch.empty(numbers.shape, dtype=dtype, device=numbers.device)
    _dequantize_kernel[(-(-tokens // DEQUANTIZED_AT_ONCE), heads, sequences)](
        numbers, scales, output, *numbers.stride()[:2], *scales.stride()[:2], heads, tokens,
        offset=OFFSET, width=width, at_once=DEQUANTIZED_AT_ONCE,
    )  # fmt: skip
    return output


@jit()
def _store_rounded(
    vectors: tl.tensor, numbers: tl.tensor, scales: tl.tensor, there: tl.tensor,
    inside: tl.tensor,
    inverse: tl.constexpr, offset: tl.constexpr, least: tl.constexpr, width: tl.constexpr,
) -> None:  # fmt: skip
    scale = tl.max(tl.abs(vectors), axis=1) * inverse
    # adding 1.5 · 2²³ leaves no fraction bits, and rounds halves to even as PyTorch does
    rounded = tl.div_rn(vectors, tl.maximum(scale, least)[:, None]) + 12582912.0 - 12582912.0
    to = numbers + there[:, None] * width + tl.arange(0, width)[None, :]
    tl.store(to, (rounded + offset).to(tl.uint8), mask=inside[:, None])
    tl.store(scales + there, scale, mask=inside)


@jit("places", "tokens", "length")
def _store(
    keys: tl.tensor, values: tl.tensor, rotating: tl.tensor, key_numbers: tl.tensor,
    key_scales: tl.tensor, value_numbers: tl.tensor, value_scales: tl.tensor,
    positions: tl.tensor,
    key_sequence: tl.tensor, key_head: tl.tensor, key_token: tl.tensor,
    value_sequence: tl.tensor, value_head: tl.tensor, value_token: tl.tensor,
    places: tl.tensor, tokens: tl.tensor, heads: tl.tensor, length: tl.tensor,
    root: tl.constexpr, inverse: tl.constexpr, offset: tl.constexpr, least: tl.constexpr,
    at_once: tl.constexpr, turned_at_once: tl.constexpr, width: tl.constexpr,
) -> None:  # fmt: skip
    """Rotate some tokens' keys of a head, quantize them and the values, and store both."""
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
        value.to(tl.float32), value_numbers, value_scales, there, inside, inverse, offset, least,
        width,
    )  # fmt: skip


@jit("tokens")
def _dequantize_kernel(
    numbers: tl.tensor, scales: tl.tensor, output: tl.tensor,
    numbers_sequence: tl.tensor, numbers_head: tl.tensor, scales_sequence: tl.tensor,
    scales_head: tl.tensor,
    heads: tl.tensor, tokens: tl.tensor,
    offset: tl.constexpr, width: tl.constexpr, at_once: tl.constexpr,
) -> None:  # fmt: skip
    """Dequantize some tokens of a head."""
    token = tl.program_id(0) * at_once + tl.arange(0, at_once)
    head, sequence = tl.program_id(1), tl.program_id(2).to(tl.int64)
    inside = token < tokens
    there = token[:, None] * width + tl.arange(0, width)[None, :]
    numbers += sequence * numbers_sequence + head * numbers_head
    scales += sequence * scales_sequence + head * scales_head
    number = tl.load(numbers + there, mask=inside[:, None], other=offset).to(tl.float32) - offset
    scale = tl.load(scales + token, mask=inside, other=0.0)
    output += (sequence * heads + head) * tokens * width
    values = (number * scale[:, None]).to(output.dtype.element_ty)
    tl.store(output + there, values, mask=inside[:, None])
