"""Multiplying a few rows with a matrix that bitsandbytes holds in four bits.

A step of generation multiplies as many rows as there are sequences, so reading the weights is what
it costs. Writing them out in bfloat16 first reads and writes nine times as much; here they become
bfloat16 in registers, between memory and multiplication (QLoRA, arXiv:2305.14314). A level is
rounded to bfloat16 and a block's sum is scaled in float32, where bitsandbytes rounds level times
scale: the two differ by as much as either does from the exact weight, 2⁻⁹ of it.

The work is cut into equal parts whatever the matrix's shape, as in Stream-K (arXiv:2301.03598).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from ja_instruct.engine.kernels.nf4_decode import ASSEMBLY, decode
from ja_instruct.engine.kernels.nf4_weight import BLOCK, Nf4Weight
from ja_instruct.engine.kernels.triton import jit, supports_ptx, tl, traits

MAX_ROWS = 64
ADDED_AT_ONCE = 512
# chunks of a program, or its start would be most of its work
LEAST_SHARE = 4
# one compiled kernel for all numbers of rows and ways to cut
UNSPECIALIZED = ("rows", "chunks", "total", "share")


class LowRank(NamedTuple):
    """What an adapter adds to a product: ``scaling · narrow @ second.T``.

    Attributes:
        narrow: bfloat16, (rows, rank), the rows times the first factor, perhaps columns of a wider
            tensor; rank is a multiple of 16.
        second: bfloat16, (outputs, rank).
        scaling: A number.
    """

    narrow: torch.Tensor
    second: torch.Tensor
    scaling: float


class Blocks(NamedTuple):
    """How the work is cut.

    Attributes:
        outputs: That a program computes at once.
        programs: Among which the work is divided.
        warps: Of a program.
        stages: Loads on their way at once.
        joined: Whether 64 inputs are one product; or four, one after the other.
    """

    outputs: int
    programs: int
    warps: int
    stages: int
    joined: bool = False


def arrange(x: torch.Tensor) -> torch.Tensor:
    """Return rows as the kernel reads them: of each 64 numbers every fourth, then the next fourths.

    Four weights lie in 16 bits, and come out of them in as many tensors.

    Args:
        x: (rows, inputs), inputs a multiple of 64.

    Returns:
        (inputs / 64, rows, 64).
    """
    rows, inputs = x.shape
    quads = x.view(rows, inputs // BLOCK, BLOCK // 4, 4).permute(1, 0, 3, 2)
    return quads.reshape(inputs // BLOCK, rows, BLOCK)


def nf4_matmul(
    x: torch.Tensor,
    weight: Nf4Weight,
    bias: torch.Tensor | None = None,
    *,
    arranged: torch.Tensor | None = None,
    low_rank: LowRank | None = None,
    blocks: Blocks | None = None,
) -> torch.Tensor:
    """Return ``x @ weight.T + bias``, and what an adapter adds.

    The order of summing depends on shapes and device alone, so equal inputs give equal outputs.
    There is nothing to wait for, and after a first call, which compiles, a CUDA graph can hold it.

    Args:
        x: (rows, inputs), bfloat16, up to 64 rows.
        weight: On the same device.
        bias: (outputs,); None adds nothing.
        arranged: ``arrange(x)``, where the caller has it already.
        low_rank: None adds nothing.
        blocks: How the work is cut; None: as suits the device.

    Returns:
        (rows, outputs), bfloat16, summed in float32.

    Raises:
        ValueError: ``x`` has another type, more rows or other columns.
    """
    rows, inputs = x.shape
    if x.dtype != torch.bfloat16 or rows > MAX_ROWS or inputs != weight.inputs:
        raise ValueError(
            f"up to {MAX_ROWS} rows of {weight.inputs} bfloat16 numbers can be multiplied, not "
            f"{rows} of {inputs} in {x.dtype}"
        )
    blocks = blocks or choose_blocks(*traits(x.device))
    cut = cut_work(weight.outputs, inputs, blocks)
    parts = torch.empty((cut.slots, rows, weight.outputs), dtype=torch.float32, device=x.device)
    output = torch.empty((rows, weight.outputs), dtype=torch.bfloat16, device=x.device)
    _multiply[(cut.programs,)](
        arrange(x) if arranged is None else arranged,
        weight.quads,
        weight.scales,
        weight.levels,
        low_rank.narrow if low_rank else None,
        low_rank.second if low_rank else None,
        low_rank.scaling if low_rank else 1.0,
        parts,
        rows,
        weight.outputs,
        inputs // 4,
        cut.chunks,
        cut.total,
        cut.share,
        low_rank.second.shape[1] if low_rank else 0,
        low_rank.narrow.stride(0) if low_rank else 0,
        assembly=ASSEMBLY if supports_ptx(x.device) else None,
        block_rows=max(16, 1 << (rows - 1).bit_length()),
        block_outputs=blocks.outputs,
        joined=blocks.joined,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
    )
    _add[(-(-weight.outputs // ADDED_AT_ONCE), rows)](
        parts,
        bias,
        output,
        rows,
        weight.outputs,
        cut.chunks,
        cut.share,
        slots=cut.slots,
        block_outputs=blocks.outputs,
        at_once=ADDED_AT_ONCE,
    )
    return output


class Cut(NamedTuple):
    """A matrix as chunks of 64 inputs of some outputs, in equal shares.

    Attributes:
        chunks: Of a tile, which is some outputs with all inputs.
        total: Chunks of all tiles.
        share: Chunks of a program; its last may be another tile's than its first.
        programs: That have a share.
        slots: Programs among which a tile may be divided.
    """

    chunks: int
    total: int
    share: int
    programs: int
    slots: int


@cache
def cut_work(outputs: int, inputs: int, blocks: Blocks) -> Cut:
    """Return the shares of a matrix: one for each program, or fewer that are not too small."""
    chunks = inputs // BLOCK
    tiles = -(-outputs // blocks.outputs)
    total = tiles * chunks
    share = max(-(-total // blocks.programs), min(LEAST_SHARE, total))
    begins = [(tile * chunks, tile * chunks + chunks - 1) for tile in range(tiles)]
    slots = max(last // share - first // share + 1 for first, last in begins)
    return Cut(chunks, total, share, -(-total // share), slots)


def choose_blocks(processors: int, major: int) -> Blocks:
    """Return how work is cut on a device.

    Args:
        processors: Multiprocessors of the device.
        major: Of its compute capability; 9 is Hopper.
    """
    # As many programs as find room at once, so that they end together. Hopper waits for each
    # product of weights in registers; elsewhere joining them would be a detour by shared memory.
    if major == 9:
        return Blocks(128, 2 * processors, 4, 4, joined=True)
    return Blocks(64, 3 * processors, 4, 3)


@jit(*UNSPECIALIZED)
def _multiply(
    x: tl.tensor,
    quads: tl.tensor,
    scales: tl.tensor,
    levels: tl.tensor,
    narrow: tl.tensor,
    second: tl.tensor,
    scaling: tl.tensor,
    parts: tl.tensor,
    rows: tl.tensor,
    outputs: tl.tensor,
    quads_a_row: tl.tensor,
    chunks: tl.tensor,
    total: tl.tensor,
    share: tl.tensor,
    rank: tl.tensor,
    narrow_row: tl.tensor,
    assembly: tl.constexpr,
    block_rows: tl.constexpr,
    block_outputs: tl.constexpr,
    joined: tl.constexpr,
) -> None:
    """Multiply a share of the chunks with all rows, and store a sum for each tile it touches."""
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
        # those beyond the last read its weights, so that no load needs a mask; they are not stored
        safe = tl.minimum(column, outputs - 1)
        first = tl.maximum(begin - tile * chunks, 0)
        last = tl.minimum(end - tile * chunks, chunks)
        summed = tl.zeros((block_outputs, block_rows), tl.float32)
        if narrow is not None:
            for place in tl.range(0, tl.where(first == 0, rank, 0), 16, num_stages=1):
                factor = tl.load(second + safe[:, None] * rank + (place + at)[None, :])
                few = tl.load(
                    narrow + row[None, :] * narrow_row + (place + at)[:, None],
                    mask=present,
                    other=0.0,
                )
                summed = tl.dot(factor, few, summed)
            summed *= scaling
        quad_at = quads + safe.to(tl.int64)[:, None] * quads_a_row + at[None, :]
        # Loaded a chunk ahead: Triton does that for what is multiplied alone, and waiting for the
        # memory in each turn would take longer than all else
        following = tl.load(scales + first * outputs + safe)
        for chunk in tl.range(first, last):
            scale = following.to(tl.float32)
            following = tl.load(scales + tl.minimum(chunk + 1, last - 1) * outputs + safe)
            quad = tl.load(quad_at + chunk * 16)
            w0, w1, w2, w3 = decode(quad, levels, assembly)
            here = x_at + chunk * (64 * rows)
            # the weights stand first: Hopper multiplies 64 rows at least, and takes them from
            # registers
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
        slot = program - tile * chunks // share
        to = parts + slot * rows * outputs + row[None, :] * outputs + column[:, None]
        tl.store(to, summed, mask=present & (column < outputs)[:, None])


@jit(*UNSPECIALIZED)
def _add(
    parts: tl.tensor,
    bias: tl.tensor,
    output: tl.tensor,
    rows: tl.tensor,
    outputs: tl.tensor,
    chunks: tl.tensor,
    share: tl.tensor,
    slots: tl.constexpr,
    block_outputs: tl.constexpr,
    at_once: tl.constexpr,
) -> None:
    """Add up a row's parts, always in the same order."""
    column = tl.program_id(0) * at_once + tl.arange(0, at_once)
    inside = column < outputs
    begin = column // block_outputs * chunks
    used = (begin + chunks - 1) // share - begin // share + 1
    at = tl.program_id(1) * outputs + column
    total = tl.zeros((at_once,), tl.float32)
    for slot in tl.static_range(slots):
        here = inside & (slot < used)
        total += tl.load(parts + slot * rows * outputs + at, mask=here, other=0.0)
    if bias is not None:
        total += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + at, total.to(tl.bfloat16), mask=inside)
