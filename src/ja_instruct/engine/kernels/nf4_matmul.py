"""Multiply a few rows with an NF4 matrix of bitsandbytes.

A decoding step multiplies one row per sequence, so its cost is reading the weights. Dequantizing
them to memory first reads and writes nine times as much; here they become bfloat16 in registers
(QLoRA, arXiv:2305.14314). Codebook values are rounded to bfloat16 and the sum of a block is scaled
in float32, while bitsandbytes rounds value times scale: the two differ by as much as either does
from the exact weight, 2⁻⁹ of it.

The work is split into equal shares whatever the matrix's shape, as in Stream-K (arXiv:2301.03598).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from ja_instruct.engine.kernels.nf4_weight import ASSEMBLY, BLOCK, Nf4Weight, decode
from ja_instruct.engine.kernels.triton import jit, supports_ptx, tl, traits

MAX_ROWS = 64
ADDED_AT_ONCE = 512
# Chunks per program at least, or most of its time would be its start
LEAST_SHARE = 4
# One compiled kernel serves all values of these
UNSPECIALIZED = ("rows", "chunks", "total", "share")


class LowRank(NamedTuple):
    """A LoRA adapter of a product, which adds ``scaling · xa @ b.T``.

    Attributes:
        xa: bfloat16, (rows, rank), the rows times Aᵀ, possibly columns of a wider tensor; rank is a
            multiple of 16.
        b: bfloat16, (outputs, rank).
        scaling: A number.
    """

    xa: torch.Tensor
    b: torch.Tensor
    scaling: float


class Blocks(NamedTuple):
    """How the work is split.

    Attributes:
        outputs: Per program, at once.
        joined: Whether 64 inputs are one product, or four in turn.
    """

    outputs: int
    programs: int
    warps: int
    stages: int
    joined: bool = False


def arrange(x: torch.Tensor) -> torch.Tensor:
    """Return rows, (rows, inputs), in the kernel's order, (inputs / 64, rows, 64).

    An int16 packs four weights, which are decoded into four tensors. So the order of 64 numbers is
    0, 4, 8, …, then 1, 5, 9, … and so on.
    """
    rows, inputs = x.shape
    fours = x.view(rows, inputs // BLOCK, BLOCK // 4, 4).permute(1, 0, 3, 2)
    return fours.reshape(inputs // BLOCK, rows, BLOCK)


def nf4_matmul(
    x: torch.Tensor,
    weight: Nf4Weight,
    bias: torch.Tensor | None = None,
    *,
    arranged: torch.Tensor | None = None,
    low_rank: LowRank | None = None,
    blocks: Blocks | None = None,
) -> torch.Tensor:
    """Return ``x @ weight.T + bias``, with an adapter's product added.

    The order of summation depends only on shapes and device, so equal inputs give equal outputs.
    After a first call, which compiles, a CUDA graph can capture it.

    Args:
        x: (rows, inputs), bfloat16, up to 64 rows.
        weight: On the same device.
        bias: (outputs,), or None.
        arranged: ``arrange(x)``, if the caller has it already.
        low_rank: The adapter, or None.
        blocks: None for the device's default.

    Returns:
        (rows, outputs), bfloat16, summed in float32.

    Raises:
        ValueError: ``x`` has another dtype, more rows or other columns.
    """
    rows, inputs = x.shape
    if x.dtype != torch.bfloat16 or rows > MAX_ROWS or inputs != weight.inputs:
        raise ValueError(
            f"up to {MAX_ROWS} rows of {weight.inputs} bfloat16 numbers can be multiplied, not "
            f"{rows} of {inputs} in {x.dtype}"
        )
    blocks = blocks or choose_blocks(*traits(x.device))
    cut = cut_work(weight.outputs, inputs, blocks)
    parts = torch.empty((cut.parts, rows, weight.outputs), dtype=torch.float32, device=x.device)
    output = torch.empty((rows, weight.outputs), dtype=torch.bfloat16, device=x.device)
    _multiply[(cut.programs,)](
        arrange(x) if arranged is None else arranged, weight.packed, weight.scales,
        weight.codebook, low_rank.xa if low_rank else None,
        low_rank.b if low_rank else None, low_rank.scaling if low_rank else 1.0, parts,
        rows, weight.outputs, inputs // 4, cut.chunks, cut.total, cut.share,
        low_rank.b.shape[1] if low_rank else 0,
        low_rank.xa.stride(0) if low_rank else 0,
        assembly=ASSEMBLY if supports_ptx(x.device) else None,
        block_rows=max(16, 1 << (rows - 1).bit_length()), block_outputs=blocks.outputs,
        joined=blocks.joined, num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    _add[(-(-weight.outputs // ADDED_AT_ONCE), rows)](
        parts, bias, output, rows, weight.outputs, cut.chunks, cut.share,
        most_parts=cut.parts, block_outputs=blocks.outputs, at_once=ADDED_AT_ONCE,
    )  # fmt: skip
    return output


class Cut(NamedTuple):
    """A matrix split into chunks of 64 inputs by a block of outputs, in equal shares.

    Attributes:
        chunks: Per tile, which is a block of outputs with all inputs.
        total: Chunks of all tiles.
        share: Chunks per program, possibly of several tiles.
        programs: Number of shares.
        parts: The most programs that share a tile.
    """

    chunks: int
    total: int
    share: int
    programs: int
    parts: int


@cache
def cut_work(outputs: int, inputs: int, blocks: Blocks) -> Cut:
    """Return the shares of a matrix: one per program, or fewer if they would be too small."""
    chunks = inputs // BLOCK
    tiles = -(-outputs // blocks.outputs)
    total = tiles * chunks
    share = max(-(-total // blocks.programs), min(LEAST_SHARE, total))
    begins = [(tile * chunks, tile * chunks + chunks - 1) for tile in range(tiles)]
    parts = max(last // share - first // share + 1 for first, last in begins)
    return Cut(chunks, total, share, -(-total // share), parts)


def choose_blocks(processors: int, major: int) -> Blocks:
    """Return how to split the work on a device with these traits."""
    # As many programs as run at once, so that they end together. Hopper waits for each product of
    # weights in registers; elsewhere joining them would go through shared memory.
    if major == 9:
        return Blocks(128, 2 * processors, 4, 4, joined=True)
    return Blocks(64, 3 * processors, 4, 3)


@jit(*UNSPECIALIZED)
def _multiply(
    x: tl.tensor, packed: tl.tensor, scales: tl.tensor, codebook: tl.tensor, xa: tl.tensor,
    b: tl.tensor, scaling: tl.tensor, parts: tl.tensor, rows: tl.tensor,
    outputs: tl.tensor,
    packed_per_row: tl.tensor,
    chunks: tl.tensor, total: tl.tensor, share: tl.tensor, rank: tl.tensor,
    xa_row: tl.tensor,
    assembly: tl.constexpr, block_rows: tl.constexpr, block_outputs: tl.constexpr,
    joined: tl.constexpr,
) -> None:  # fmt: skip
    """Multiply a share of the chunks with all rows, and store a partial sum for each tile."""
    program = tl.program_id(0)
    begin = program * share
    end = tl.minimum(begin + share, total)
    row = tl.arange(0, block_rows)
    present = (row < rows)[None, :]
    at = tl.arange(0, 16)
    taken: tl.constexpr = 64 if joined else 16
    x_at = x + row[None, :] * 64 + tl.arange(0, taken)[:, None]
    for tile in tl.range(begin // chunks, (end - 1) // chunks + 1, num_stages=1):
        column = tile * block_outputs + tl.arange(0, block_outputs)
        # columns beyond the last load the last, so that no load needs a mask; they are not stored
        safe = tl.minimum(column, outputs - 1)
        first = tl.maximum(begin - tile * chunks, 0)
        last = tl.minimum(end - tile * chunks, chunks)
        summed = tl.zeros((block_outputs, block_rows), tl.float32)
        if xa is not None:
            for place in tl.range(0, tl.where(first == 0, rank, 0), 16, num_stages=1):
                b_rows = tl.load(b + safe[:, None] * rank + (place + at)[None, :])
                xa_rows = tl.load(
                    xa + row[None, :] * xa_row + (place + at)[:, None], mask=present, other=0.0
                )
                summed = tl.dot(b_rows, xa_rows, summed)
            summed *= scaling
        packed_at = packed + safe.to(tl.int64)[:, None] * packed_per_row + at[None, :]
        # Scales are loaded a chunk ahead, because Triton pipelines only the loads of a product, and
        # waiting for the memory in each iteration would take most of the time.
        following = tl.load(scales + first * outputs + safe)
        for chunk in tl.range(first, last):
            scale = following.to(tl.float32)
            following = tl.load(scales + tl.minimum(chunk + 1, last - 1) * outputs + safe)
            w0, w1, w2, w3 = decode(tl.load(packed_at + chunk * 16), codebook, assembly)
            here = x_at + chunk * (64 * rows)
            # weights are the left operand: Hopper multiplies at least 64 rows, from registers
            if joined:
                pairs = tl.join(tl.join(w0, w1), tl.join(w2, w3))
                w = tl.reshape(tl.permute(pairs, (0, 3, 2, 1)), (block_outputs, 64))
                part = tl.dot(w, tl.load(here, mask=present, other=0.0))
            else:
                part = tl.dot(w0, tl.load(here, mask=present, other=0.0))
                part = tl.dot(w1, tl.load(here + 16, mask=present, other=0.0), part)
                part = tl.dot(w2, tl.load(here + 32, mask=present, other=0.0), part)
                part = tl.dot(w3, tl.load(here + 48, mask=present, other=0.0), part)
            summed += part * scale[:, None]
        part_of_tile = program - tile * chunks // share
        to = parts + part_of_tile * rows * outputs + row[None, :] * outputs + column[:, None]
        tl.store(to, summed, mask=present & (column < outputs)[:, None])


@jit(*UNSPECIALIZED)
def _add(
    parts: tl.tensor, bias: tl.tensor, output: tl.tensor, rows: tl.tensor, outputs: tl.tensor,
    chunks: tl.tensor, share: tl.tensor,
    most_parts: tl.constexpr, block_outputs: tl.constexpr, at_once: tl.constexpr,
) -> None:  # fmt: skip
    """Add a row's partial sums, always in the same order."""
    column = tl.program_id(0) * at_once + tl.arange(0, at_once)
    inside = column < outputs
    begin = column // block_outputs * chunks
    used = (begin + chunks - 1) // share - begin // share + 1
    at = tl.program_id(1) * outputs + column
    total = tl.zeros((at_once,), tl.float32)
    for part in tl.static_range(most_parts):
        here = inside & (part < used)
        total += tl.load(parts + part * rows * outputs + at, mask=here, other=0.0)
    if bias is not None:
        total += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + at, total.to(tl.bfloat16), mask=inside)
