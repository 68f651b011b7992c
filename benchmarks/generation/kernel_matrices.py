"""The matrices of Gemma 2 27B's layers times a few rows: in four bits, and written out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import bitsandbytes
import bitsandbytes.functional as quantized
import torch

from benchmarks.generation.kernel_timing import Call, Clock, compare, poisoned, relative_error
from ja_instruct.engine.kernels.nf4_dequantize import Factors, dequantize
from ja_instruct.engine.kernels.nf4_matmul import (
    Blocks,
    arrange,
    nf4_matmul,
)
from ja_instruct.engine.kernels.nf4_weight import Nf4Weight, nf4_weight


class Matrix(NamedTuple):
    """A shape of matrices.

    Attributes:
        outputs: Rows.
        inputs: Columns.
        count: How many a layer has.
        arranged: How many inputs a layer brings into the kernel's order for them.
    """

    outputs: int
    inputs: int
    count: int
    arranged: int


#: Queries, keys and values have the same input, and so have gate and up.
MATRICES = {
    "q": Matrix(4096, 4608, 1, 1),
    "k, v": Matrix(2048, 4608, 2, 0),
    "o": Matrix(4608, 4096, 1, 1),
    "gate, up": Matrix(36_864, 4608, 2, 1),
    "down": Matrix(4608, 36_864, 1, 1),
}
OURS, BITSANDBYTES, BF16 = "ours", "bitsandbytes", "bfloat16"
#: Beside the ways to multiply: ordering the rows, which ours pays for each input.
ARRANGING = "arranging"

#: Of the recipe's adapter.
RANK, SCALING = 64, 1.0

#: Of a way to multiply: microseconds, and the error where there is one.
Figures = dict[str, float]


class Copy(NamedTuple):
    """A weight as each way to multiply has it."""

    packed: torch.Tensor
    state: Any
    ours: Nf4Weight
    written_out: torch.Tensor


def make_copy(matrix: Matrix, device: torch.device) -> Copy:
    """Return a random weight, quantized as the product's models are."""
    weight = (torch.randn(matrix.outputs, matrix.inputs, device=device) * 0.02).bfloat16()
    packed, state = quantized.quantize_4bit(
        weight, quant_type="nf4", blocksize=64, compress_statistics=True
    )
    written_out = quantized.dequantize_4bit(packed, state)
    return Copy(packed, state, nf4_weight(packed, state), written_out)


def exact_product(x: torch.Tensor, one: Copy) -> torch.Tensor:
    """Return the product in float64 with weights that are written out in float32.

    Written out in bfloat16 they would have bitsandbytes' roundings, and flatter it.
    """
    state = copy.copy(one.state)
    state.dtype = torch.float32
    return x.double() @ quantized.dequantize_4bit(one.packed, state).double().T


def copies_for(matrix: Matrix, cache_bytes: int) -> int:
    """Return how many copies are twice the cache at least: of none will anything be left in it.

    >>> copies_for(Matrix(36_864, 4608, 1, 1), 50_000_000), copies_for(MATRICES["q"], 50_000_000)
    (2, 11)
    """
    return max(1, -(-2 * cache_bytes // (matrix.outputs * matrix.inputs // 2)))


def ways_to_multiply(
    x: torch.Tensor, copies: list[Copy], cuts: dict[str, Blocks]
) -> dict[str, list[Call]]:
    """Return by name how rows can be multiplied, a call for each copy."""
    arranged = arrange(x)

    def ours(blocks: Blocks | None) -> list[Call]:
        return [
            partial(nf4_matmul, x, one.ours, arranged=arranged, blocks=blocks) for one in copies
        ]

    return {
        OURS: ours(None),
        # what Linear4bit computes
        BITSANDBYTES: [
            partial(bitsandbytes.matmul_4bit, x, one.packed, quant_state=one.state)
            for one in copies
        ],
        BF16: [partial(torch.nn.functional.linear, x, one.written_out) for one in copies],
        **{name: ours(cut) for name, cut in cuts.items()},
    }


def measure_way(calls: list[Call], exact: torch.Tensor, is_ours: bool, clock: Clock) -> Figures:
    """Return a way's microseconds, and its error with the first copy.

    Of the others' products memory need not be poisoned: PyTorch would warn of cuBLAS.
    """
    with poisoned() if is_ours else nullcontext():
        output = calls[0]()
    return {"error": relative_error(output, exact), "us": clock(calls)}


def measure_matrix(
    matrix: Matrix,
    all_rows: Sequence[int],
    cuts: dict[str, Blocks],
    copies: list[Copy],
    clock: Clock,
) -> dict[int, dict[str, Figures]]:
    """Return the figures of each way to multiply, for each number of rows.

    Why a cut does not run is printed, and it is left out.

    Args:
        matrix: The shape.
        all_rows: How many rows are multiplied.
        cuts: Further ways to cut the kernel's work.
        copies: Weights of that shape, taken in turn.
        clock: What times calls.
    """
    inputs = torch.randn(max(all_rows), matrix.inputs, device=copies[0].packed.device).bfloat16()
    exact = exact_product(inputs, copies[0])
    measured: dict[int, dict[str, Figures]] = {}
    for rows in all_rows:
        x = inputs[:rows]
        found: dict[str, Figures] = {ARRANGING: {"us": clock([partial(arrange, x)])}}
        for name, calls in ways_to_multiply(x, copies, cuts).items():
            is_ours = name not in (BITSANDBYTES, BF16)
            try:
                found[name] = measure_way(calls, exact[:rows], is_ours, clock)
            except Exception as problem:
                # a compiler may fail in many ways, and the other cuts are worth their figures
                if name not in cuts:
                    raise
                shape = f"{rows} rows of {matrix.outputs} x {matrix.inputs}"
                print(f"{name}, {shape}: {type(problem).__name__}: {problem}", flush=True)
        measured[rows] = found
    return measured


def measure_matrices(
    all_rows: Sequence[int], cuts: dict[str, Blocks], device: torch.device, clock: Clock
) -> dict[str, dict[int, dict[str, Figures]]]:
    """Return the figures of all matrices, of which one shape at a time is in memory."""
    cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    measured = {}
    for name, matrix in MATRICES.items():
        copies = [make_copy(matrix, device) for _ in range(copies_for(matrix, cache_bytes))]
        measured[name] = measure_matrix(matrix, all_rows, cuts, copies, clock)
    return measured


def compare_writing_out(device: torch.device, clock: Clock) -> dict[str, dict[str, float]]:
    """Compare writing a matrix out in bfloat16, alone and with what an adapter adds to it."""
    rows = {}
    for name in ("q", "gate, up"):
        matrix = MATRICES[name]
        one = make_copy(matrix, device)
        state = copy.copy(one.state)
        state.dtype = torch.float32
        weight = partial(quantized.dequantize_4bit, one.packed, state)
        first = torch.randn(RANK, matrix.inputs, device=device).bfloat16()
        second = (torch.randn(matrix.outputs, RANK, device=device) * 0.002).bfloat16()
        factors = Factors(first, second, SCALING)
        rows[name] = compare(
            partial(dequantize, one.ours),
            partial(quantized.dequantize_4bit, one.packed, one.state),
            weight,
            clock,
        )
        rows[f"{name}, adapter"] = compare(
            partial(dequantize, one.ours, factors),
            lambda one=one, first=first, second=second: quantized.dequantize_4bit(
                one.packed, one.state
            ).addmm_(second, first, alpha=SCALING),
            lambda weight=weight, first=first, second=second: torch.addmm(
                weight(), second.float(), first.float(), alpha=SCALING
            ),
            clock,
        )
    return rows
