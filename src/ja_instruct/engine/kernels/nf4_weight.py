"""A matrix that bitsandbytes holds in four bits, as ``nf4_matmul`` reads it (arXiv:2305.14314)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

BLOCK = 64
# Scales are held in 16 bits where these lose no more than 2⁻¹² of them
FLOAT16_SCALES = (2.0**-14, 2.0**15)
# NF4's levels: a weight is one of them times the largest of its block
LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@dataclass(frozen=True)
class Nf4Weight:
    """A weight of (outputs, inputs) as the kernel reads it.

    Attributes:
        quads: int16, (outputs, inputs / 4), four weights each: a view of bitsandbytes' bytes.
        scales: float16 or float32, (inputs / 64, outputs), of each 64 weights.
        levels: bfloat16, the 16 values.
        outputs: Rows.
        inputs: Columns.
    """

    quads: torch.Tensor
    scales: torch.Tensor
    levels: torch.Tensor
    outputs: int
    inputs: int


def nf4_weight(packed: torch.Tensor, state: Any) -> Nf4Weight:
    """Return a weight of bitsandbytes; the packed weights are not copied.

    Args:
        packed: uint8, two weights a byte.
        state: Its ``bitsandbytes.functional.QuantState``.

    Raises:
        ValueError: It is not NF4 with blocks of 64 along its rows.
    """
    shape = tuple(state.shape)
    wrong = [
        f"{name} {value!r} instead of {wanted!r}"
        for name, value, wanted in (
            ("type", state.quant_type, "nf4"),
            ("block size", state.blocksize, BLOCK),
            ("storage", packed.dtype, torch.uint8),
            ("dimensions", len(shape), 2),
        )
        if value != wanted
    ]
    if not wrong and shape[1] % BLOCK:
        wrong = [f"rows of {shape[1]} weights, which are no multiple of {BLOCK}"]
    if not wrong and packed.numel() * 2 != shape[0] * shape[1]:
        wrong = [f"{packed.numel()} bytes for {shape[0]} rows of {shape[1]} weights"]
    levels = torch.tensor(LEVELS, device=packed.device)
    if not wrong and not torch.allclose(state.code.to(levels), levels, rtol=0, atol=1e-6):
        wrong = [f"levels {state.code.tolist()}, which are not NF4's"]
    if wrong:
        raise ValueError(f"a weight cannot be multiplied in four bits: {', '.join(wrong)}")
    outputs, inputs = shape
    return Nf4Weight(
        quads=packed.reshape(-1).view(torch.int16).view(outputs, inputs // 4),
        scales=_scales(state).view(outputs, inputs // BLOCK).T.contiguous(),
        levels=levels.to(torch.bfloat16),
        outputs=outputs,
        inputs=inputs,
    )


def _scales(state: Any) -> torch.Tensor:
    """Return the scale of each block, in as few bits as they can be held in."""
    from bitsandbytes.functional import dequantize_blockwise

    scales = state.absmax
    if state.nested:
        scales = dequantize_blockwise(scales, state.state2) + state.offset
    scales = torch.as_tensor(scales, dtype=torch.float32)
    least, most = FLOAT16_SCALES
    # blocks of zeros have a scale of almost nothing, which may as well be nothing
    inside = (scales.abs() < 2.0**-24) | ((scales.abs() > least) & (scales.abs() < most))
    return scales.half() if bool(inside.all()) else scales
