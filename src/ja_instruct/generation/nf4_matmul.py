"""Multiplying a few rows with a matrix that bitsandbytes holds in four bits.

A step of generation multiplies as many rows as there are sequences, so reading the weights is what
it costs. Writing them out in bfloat16 first reads and writes nine times as much; here each is
looked up, scaled and rounded between memory and multiplication, as bitsandbytes rounds it
(QLoRA, arXiv:2305.14314).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # it comes with PyTorch for CUDA, and nothing else can use the kernel
    triton = None

MAX_ROWS = 64
BLOCK = 64
BLOCK_OF_SCALES = 256
ADDED_AT_ONCE = 512


@dataclass(frozen=True)
class Nf4Weight:
    """A weight of (outputs, inputs) as the kernel reads it.

    Attributes:
        words: int32, eight weights each, row by row: a view of bitsandbytes' bytes.
        levels: float32, the 16 values.
        scales: Of each 64 weights, float32, or uint8 where they are quantized themselves.
        scale_levels: float32, the 256 values of quantized scales; None without.
        scale_scales: float32, of each 256 scales; None without.
        scale_offset: float32, one number, added to a scale; None without.
        outputs: Rows.
        inputs: Columns.
    """

    words: torch.Tensor
    levels: torch.Tensor
    scales: torch.Tensor
    scale_levels: torch.Tensor | None
    scale_scales: torch.Tensor | None
    scale_offset: torch.Tensor | None
    outputs: int
    inputs: int


class Blocks(NamedTuple):
    """How the work is cut.

    Attributes:
        outputs: Of a program.
        inputs: Taken at once.
        splits: Parts of the inputs, summed at the end in their order.
        warps: Of a program.
        stages: Loads on their way at once.
    """

    outputs: int
    inputs: int
    splits: int
    warps: int
    stages: int


def is_available(device: torch.device) -> bool:
    """Return whether the kernel runs on a device: with Triton, from Ampere on for bfloat16."""
    return device.type == "cuda" and triton is not None and _traits(device)[1] >= 8


def nf4_weight(packed: torch.Tensor, state: Any) -> Nf4Weight:
    """Return a weight of bitsandbytes without copying it.

    Args:
        packed: uint8, two weights a byte.
        state: Its ``bitsandbytes.functional.QuantState``.

    Raises:
        ValueError: It is not NF4 with blocks of 64 along its rows.
    """
    shape = tuple(state.shape)
    nested = state.state2
    wrong = [
        f"{name} {value!r} instead of {wanted!r}"
        for name, value, wanted in (
            ("type", state.quant_type, "nf4"),
            ("block size", state.blocksize, BLOCK),
            ("block size of scales", nested.blocksize if nested else None, BLOCK_OF_SCALES),
            ("storage", packed.dtype, torch.uint8),
            ("dimensions", len(shape), 2),
        )
        if value != wanted and value is not None
    ]
    if not wrong and shape[1] % BLOCK:
        wrong = [f"rows of {shape[1]} weights, which are no multiple of {BLOCK}"]
    if not wrong and packed.numel() * 2 != shape[0] * shape[1]:
        wrong = [f"{packed.numel()} bytes for {shape[0]} rows of {shape[1]} weights"]
    if wrong:
        raise ValueError(f"a weight cannot be multiplied in four bits: {', '.join(wrong)}")
    device = packed.device
    return Nf4Weight(
        words=packed.reshape(-1).view(torch.int32),
        levels=state.code.to(device, torch.float32),
        scales=state.absmax,
        scale_levels=nested.code.to(device, torch.float32) if nested else None,
        scale_scales=nested.absmax.to(device, torch.float32) if nested else None,
        scale_offset=state.offset.to(device, torch.float32) if nested else None,
        outputs=shape[0],
        inputs=shape[1],
    )


def nf4_matmul(
    x: torch.Tensor,
    weight: Nf4Weight,
    bias: torch.Tensor | None = None,
    blocks: Blocks | None = None,
) -> torch.Tensor:
    """Return ``x @ weight.T + bias``.

    The order of summing depends on shapes and device alone, so equal inputs give equal outputs.
    There is nothing to wait for, and after a first call, which compiles, a CUDA graph can hold it.

    Args:
        x: (rows, inputs), bfloat16, up to 64 rows.
        weight: On the same device.
        bias: (outputs,); None adds nothing.
        blocks: How the work is cut; None: as suits the device.

    Returns:
        (rows, outputs), bfloat16, summed in float32.

    Raises:
        ValueError: ``x`` has another type, more rows or other columns; or ``blocks`` do not divide
            the inputs.
    """
    rows, inputs = x.shape
    if x.dtype != torch.bfloat16 or rows > MAX_ROWS or inputs != weight.inputs:
        raise ValueError(
            f"up to {MAX_ROWS} rows of {weight.inputs} bfloat16 numbers can be multiplied, not "
            f"{rows} of {inputs} in {x.dtype}"
        )
    blocks = blocks or choose_blocks(weight.outputs, inputs, rows, *_traits(x.device))
    if inputs % blocks.inputs:
        raise ValueError(f"{inputs} inputs cannot be taken {blocks.inputs} at once")
    part = -(-inputs // (blocks.splits * blocks.inputs)) * blocks.inputs
    splits = -(-inputs // part)
    nested = weight.scale_offset is not None
    # one part is written as it shall be; of several the sums are kept exact
    kind = torch.bfloat16 if splits == 1 else torch.float32
    parts = torch.empty((splits, rows, weight.outputs), dtype=kind, device=x.device)
    bias = None if bias is None else bias.contiguous()
    _multiply[(-(-weight.outputs // blocks.outputs), splits)](
        x.contiguous(),
        weight.words,
        weight.levels,
        weight.scales,
        weight.scale_levels,
        weight.scale_scales,
        weight.scale_offset,
        bias if splits == 1 else None,
        parts,
        rows,
        weight.outputs,
        inputs,
        part,
        nested=nested,
        with_bias=bias is not None and splits == 1,
        block_rows=max(16, 1 << (rows - 1).bit_length()),
        block_outputs=blocks.outputs,
        block_inputs=blocks.inputs,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
        # or scales would be fused into one rounding where bitsandbytes has two
        enable_fp_fusion=False,
    )
    return parts[0] if splits == 1 else _add_up(parts, bias)


def _add_up(parts: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return the sum of (splits, rows, outputs) and the bias, in bfloat16."""
    splits, rows, outputs = parts.shape
    output = torch.empty((rows, outputs), dtype=torch.bfloat16, device=parts.device)
    _add[(-(-outputs // ADDED_AT_ONCE), rows)](
        parts,
        bias,
        output,
        rows,
        outputs,
        splits=splits,
        with_bias=bias is not None,
        block_outputs=ADDED_AT_ONCE,
    )
    return output


def choose_blocks(outputs: int, inputs: int, rows: int, processors: int, major: int) -> Blocks:
    """Return how a matrix is cut on a device.

    Args:
        outputs: Rows of the weight.
        inputs: Columns, a multiple of 64.
        rows: That are multiplied with it.
        processors: Multiprocessors of the device.
        major: Of its compute capability; 9 is Hopper.
    """
    at_once = 128 if inputs % 128 == 0 else 64
    size, stages = (128, 4) if major >= 9 else (64, 3)
    programs = -(-outputs // size)
    # about two programs a processor, each with enough to do for its start not to count
    splits = max(1, min(2 * processors // programs, inputs // (4 * at_once)))
    # sums of 64 rows leave four warps too few registers
    warps = 8 if rows > 32 and major >= 9 else 4
    return Blocks(size, at_once, splits, warps, stages)


@cache
def _traits(device: torch.device) -> tuple[int, int]:
    """Return the number of multiprocessors and the major compute capability."""
    if device.type != "cuda":
        # Triton's interpreter
        return 1, 0
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.major


def _jit(function: Callable[..., Any]) -> Any:
    # one compiled kernel for all numbers of rows
    return triton.jit(function, do_not_specialize=("rows", "splits")) if triton else function


@_jit
def _multiply(
    x: tl.tensor,
    words: tl.tensor,
    levels: tl.tensor,
    scales: tl.tensor,
    scale_levels: tl.tensor,
    scale_scales: tl.tensor,
    scale_offset: tl.tensor,
    bias: tl.tensor,
    parts: tl.tensor,
    rows: tl.tensor,
    outputs: tl.tensor,
    inputs: tl.tensor,
    part: tl.tensor,
    nested: tl.constexpr,
    with_bias: tl.constexpr,
    block_rows: tl.constexpr,
    block_outputs: tl.constexpr,
    block_inputs: tl.constexpr,
) -> None:
    """Multiply some outputs' weights with a part of the inputs of all rows."""
    groups: tl.constexpr = block_inputs // 64
    column = tl.program_id(0) * block_outputs + tl.arange(0, block_outputs)
    # those beyond the last read its weights, so that no load needs a mask; they are not stored
    safe = tl.minimum(column, outputs - 1)
    row = tl.arange(0, block_rows)
    group = tl.arange(0, groups)
    first = tl.program_id(1) * part
    last = tl.minimum(first + part, inputs)
    table = tl.load(levels + tl.arange(0, 16))
    if nested:
        offset = tl.load(scale_offset)
    blocks = safe.to(tl.int64) * (inputs // 64)
    word_at = words + (blocks[:, None] + group[None, :])[:, :, None] * 8
    word_at += tl.arange(0, 8)[None, None, :]
    x_at = x + row[None, :] * inputs + tl.arange(0, block_inputs)[:, None]
    present = (row < rows)[None, :]
    total = tl.zeros((block_outputs, block_rows), tl.float32)
    for start in range(first, last, block_inputs):
        block = blocks[:, None] + (start // 64 + group)[None, :]
        if nested:
            scale = tl.load(scale_levels + tl.load(scales + block).to(tl.int32))
            scale = scale * tl.load(scale_scales + block // 256) + offset
        else:
            scale = tl.load(scales + block)
        word = tl.load(word_at + start // 8)
        # of a byte the first weight is the high half; joined so that they lie in their order
        level = tl.join(
            tl.join(
                tl.join((word >> 4) & 15, (word >> 20) & 15),
                tl.join((word >> 12) & 15, (word >> 28) & 15),
            ),
            tl.join(
                tl.join(word & 15, (word >> 16) & 15),
                tl.join((word >> 8) & 15, (word >> 24) & 15),
            ),
        )
        value = tl.gather(table, tl.reshape(level, (block_outputs * block_inputs,)), 0)
        value = tl.reshape(value, (block_outputs, groups, 64)) * scale[:, :, None]
        weight = tl.reshape(value.to(tl.bfloat16), (block_outputs, block_inputs))
        # the weights stand first: Hopper multiplies 64 rows at least, and takes them from registers
        total = tl.dot(weight, tl.load(x_at + start, mask=present, other=0.0), total)
    if with_bias:
        total += tl.load(bias + safe).to(tl.float32)[:, None]
    at = parts + tl.program_id(1) * rows * outputs + row[None, :] * outputs + column[:, None]
    tl.store(at, total.to(parts.dtype.element_ty), mask=present & (column < outputs)[:, None])


@_jit
def _add(
    parts: tl.tensor,
    bias: tl.tensor,
    output: tl.tensor,
    rows: tl.tensor,
    outputs: tl.tensor,
    splits: tl.tensor,
    with_bias: tl.constexpr,
    block_outputs: tl.constexpr,
) -> None:
    """Add up the parts of a row, always in the same order."""
    column = tl.program_id(0) * block_outputs + tl.arange(0, block_outputs)
    inside = column < outputs
    at = tl.program_id(1) * outputs + column
    total = tl.zeros((block_outputs,), tl.float32)
    for split in range(splits):
        total += tl.load(parts + split * rows * outputs + at, mask=inside, other=0.0)
    if with_bias:
        total += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + at, total.to(tl.bfloat16), mask=inside)
