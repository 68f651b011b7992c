"""Dequantize a 4-bit matrix to bfloat16 and add a LoRA adapter to it, in one pass.

Prefill multiplies thousands of rows, for which dequantizing the matrix first is fastest.
bitsandbytes' kernel does so at half of the memory's bandwidth, and an unmerged adapter costs two
more products, the second of which reads and writes all outputs. Here codebook values are rounded to
bfloat16, as in ``nf4_matmul``, scaled and added to in float32, and rounded again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ja_instruct.engine.kernels.nf4_weight import ASSEMBLY, BLOCK, Nf4Weight, decode
from ja_instruct.engine.kernels.triton import jit, supports_ptx, tl

OUTPUTS_AT_ONCE = 64
# Chunks of 64 inputs per program, which reads the adapter's matrix B once
CHUNKS = 8
# With a higher rank A and B do not fit into the shared memory of 24 GB cards
LEAST_RANK, LARGEST_RANK = 16, 128


class Factors(NamedTuple):
    """A LoRA adapter of a matrix, which adds ``scaling · b @ a``.

    Attributes:
        a: bfloat16, (rank, inputs), contiguous.
        b: bfloat16, (outputs, rank), contiguous.
    """

    a: torch.Tensor
    b: torch.Tensor
    scaling: float

    @property
    def can_be_added(self) -> bool:
        """Whether the kernel supports the rank: a power of 2 from 16 to 128."""
        rank = self.a.shape[0]
        return LEAST_RANK <= rank <= LARGEST_RANK and rank & (rank - 1) == 0


def dequantize(weight: Nf4Weight, factors: Factors | None = None) -> torch.Tensor:
    """Return a matrix in bfloat16, (outputs, inputs), with an adapter added to it."""
    output = torch.empty(
        (weight.outputs, weight.inputs), dtype=torch.bfloat16, device=weight.packed.device
    )
    chunks = weight.inputs // BLOCK
    _dequantize[(-(-chunks // CHUNKS), -(-weight.outputs // OUTPUTS_AT_ONCE))](
        weight.packed, weight.scales, weight.codebook, factors.a if factors else None,
        factors.b if factors else None, factors.scaling if factors else 1.0, output,
        weight.outputs, chunks,
        rank=factors.a.shape[0] if factors else 0,
        assembly=ASSEMBLY if supports_ptx(output.device) else None,
        block_outputs=OUTPUTS_AT_ONCE, chunks_at_once=CHUNKS, num_warps=4, num_stages=3,
    )  # fmt: skip
    return output


@jit("chunks")
def _dequantize(
    packed: tl.tensor, scales: tl.tensor, codebook: tl.tensor, a: tl.tensor, b: tl.tensor,
    scaling: tl.tensor, output: tl.tensor, outputs: tl.tensor, chunks: tl.tensor,
    rank: tl.constexpr, assembly: tl.constexpr, block_outputs: tl.constexpr,
    chunks_at_once: tl.constexpr,
) -> None:  # fmt: skip
    """Dequantize the weights of a block of outputs and of some chunks of 64 inputs."""
    line = tl.program_id(1) * block_outputs + tl.arange(0, block_outputs)
    # lines beyond the last load the last, so that no load needs a mask; they are not stored
    safe = tl.minimum(line, outputs - 1)
    row = safe.to(tl.int64)[:, None]
    packed_at = packed + row * (chunks * 16) + tl.arange(0, 16)[None, :]
    column = tl.arange(0, 64)[None, :]
    to = output + row * (chunks * 64) + column
    begin = tl.program_id(0) * chunks_at_once
    if a is not None:
        place = tl.arange(0, rank)
        b_rows = tl.load(b + row * rank + place[None, :])
        a_at = a + place[:, None] * (chunks * 64) + column
    for chunk in tl.range(begin, tl.minimum(begin + chunks_at_once, chunks)):
        w0, w1, w2, w3 = decode(tl.load(packed_at + chunk * 16), codebook, assembly)
        pairs = tl.join(tl.join(w0, w1), tl.join(w2, w3))
        w = tl.reshape(tl.permute(pairs, (0, 1, 3, 2)), (block_outputs, 64)).to(tl.float32)
        w *= tl.load(scales + chunk * outputs + safe).to(tl.float32)[:, None]
        if a is not None:
            w += scaling * tl.dot(b_rows, tl.load(a_at + chunk * 64))
        tl.store(to + chunk * 64, w.to(tl.bfloat16), mask=(line < outputs)[:, None])
