"""Writing a 4-bit matrix out in bfloat16, with what an adapter adds to it.

A prompt multiplies thousands of rows, for which a matrix is best written out first. bitsandbytes'
kernel does so at half of what the memory could take, and an adapter costs two products more, of
which the second reads and writes all outputs. Here both are one pass over the matrix: a level is
rounded to bfloat16, as in ``nf4_matmul``, scaled and added to in float32, and rounded again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ja_instruct.engine.kernels.nf4_decode import ASSEMBLY, decode
from ja_instruct.engine.kernels.nf4_weight import BLOCK, Nf4Weight
from ja_instruct.engine.kernels.triton import jit, supports_ptx, tl

OUTPUTS_AT_ONCE = 64
# of 64 inputs, of a program: it reads the adapter's second factor once
CHUNKS = 8
# of more, both factors find no room in the shared memory of cards of 24 GB
LEAST_RANK, LARGEST_RANK = 16, 128


class Factors(NamedTuple):
    """An adapter's part of a matrix: ``scaling · second @ first``.

    Attributes:
        first: bfloat16, (rank, inputs), contiguous.
        second: bfloat16, (outputs, rank), contiguous.
        scaling: A number.
    """

    first: torch.Tensor
    second: torch.Tensor
    scaling: float

    @property
    def can_be_added(self) -> bool:
        """Whether the rank is one that the kernel takes: a power of 2 from 16 to 128."""
        rank = self.first.shape[0]
        return LEAST_RANK <= rank <= LARGEST_RANK and rank & (rank - 1) == 0


def dequantize(weight: Nf4Weight, factors: Factors | None = None) -> torch.Tensor:
    """Return a matrix in bfloat16, (outputs, inputs), and what an adapter adds to it.

    Args:
        weight: On CUDA.
        factors: On the same device; None adds nothing.
    """
    output = torch.empty(
        (weight.outputs, weight.inputs), dtype=torch.bfloat16, device=weight.quads.device
    )
    chunks = weight.inputs // BLOCK
    _dequantize[(-(-chunks // CHUNKS), -(-weight.outputs // OUTPUTS_AT_ONCE))](
        weight.quads,
        weight.scales,
        weight.levels,
        factors.first if factors else None,
        factors.second if factors else None,
        factors.scaling if factors else 1.0,
        output,
        weight.outputs,
        chunks,
        rank=factors.first.shape[0] if factors else 0,
        assembly=ASSEMBLY if supports_ptx(output.device) else None,
        block_outputs=OUTPUTS_AT_ONCE,
        chunks_at_once=CHUNKS,
        num_warps=4,
        num_stages=3,
    )
    return output


@jit("chunks")
def _dequantize(
    quads: tl.tensor,
    scales: tl.tensor,
    levels: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    scaling: tl.tensor,
    output: tl.tensor,
    outputs: tl.tensor,
    chunks: tl.tensor,
    rank: tl.constexpr,
    assembly: tl.constexpr,
    block_outputs: tl.constexpr,
    chunks_at_once: tl.constexpr,
) -> None:
    """Write out some outputs' weights of some chunks of 64 inputs."""
    line = tl.program_id(1) * block_outputs + tl.arange(0, block_outputs)
    # those beyond the last are the last's, so that no load needs a mask; they are not stored
    safe = tl.minimum(line, outputs - 1)
    row = safe.to(tl.int64)[:, None]
    quad_at = quads + row * (chunks * 16) + tl.arange(0, 16)[None, :]
    column = tl.arange(0, 64)[None, :]
    to = output + row * (chunks * 64) + column
    begin = tl.program_id(0) * chunks_at_once
    if first is not None:
        place = tl.arange(0, rank)
        factor = tl.load(second + row * rank + place[None, :])
        first_at = first + place[:, None] * (chunks * 64) + column
    for chunk in tl.range(begin, tl.minimum(begin + chunks_at_once, chunks)):
        w0, w1, w2, w3 = decode(tl.load(quad_at + chunk * 16), levels, assembly)
        pairs = tl.join(tl.join(w0, w1), tl.join(w2, w3))
        w = tl.reshape(tl.permute(pairs, (0, 1, 3, 2)), (block_outputs, 64)).to(tl.float32)
        w *= tl.load(scales + chunk * outputs + safe).to(tl.float32)[:, None]
        if first is not None:
            w += scaling * tl.dot(factor, tl.load(first_at + chunk * 64))
        tl.store(to + chunk * 64, w.to(tl.bfloat16), mask=(line < outputs)[:, None])
