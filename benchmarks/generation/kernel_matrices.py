"""The matrices of Gemma 2 27B's layers in four bits: multiplied by a few rows, and dequantized."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import bitsandbytes
import bitsandbytes.functional as quantized
import torch

from benchmarks.harness.random_models import SHAPES
from ja_instruct.engine.kernels.nf4_dequantize import Factors, dequantize
from ja_instruct.engine.kernels.nf4_matmul import Blocks, arrange, nf4_matmul
from ja_instruct.engine.kernels.nf4_weight import Nf4Weight, nf4_weight

Call = Callable[[], Any]
#: Returns the microseconds of a call; the calls are the same work on different data.
Clock = Callable[[Sequence[Call]], float]


class Matrix(NamedTuple):
    """A shape of matrices.

    Attributes:
        outputs: Rows.
        inputs: Columns.
        count: Number of such matrices in a layer.
        arranged: Number of inputs that a layer arranges for them in the kernel's order.
    """

    outputs: int
    inputs: int
    count: int
    arranged: int


_SHAPE = SHAPES["gemma-2-27b"]
LAYERS = _SHAPE["num_hidden_layers"]
_HIDDEN, _WIDE = _SHAPE["hidden_size"], _SHAPE["intermediate_size"]
_QUERIES, _KEYS = (
    _SHAPE[f"num_{kind}_heads"] * _SHAPE["head_dim"] for kind in ("attention", "key_value")
)
#: Queries, keys and values have the same input, and so have gate and up.
MATRICES = {
    "q": Matrix(_QUERIES, _HIDDEN, 1, 1),
    "k, v": Matrix(_KEYS, _HIDDEN, 2, 0),
    "o": Matrix(_HIDDEN, _QUERIES, 1, 1),
    "gate, up": Matrix(_WIDE, _HIDDEN, 2, 1),
    "down": Matrix(_HIDDEN, _WIDE, 1, 1),
}
OURS, BITSANDBYTES, BF16 = "ours", "bitsandbytes", "bfloat16"
#: Not a way to multiply: arranging the rows, which ours needs once per input.
ARRANGE = "arrange"
#: The recipe's adapter.
RANK, SCALING = 64, 1.0


class Copy(NamedTuple):
    """A weight in the form of each way to multiply."""

    packed: torch.Tensor
    state: Any
    ours: Nf4Weight
    bf16: torch.Tensor


def make_copy(matrix: Matrix, device: torch.device) -> Copy:
    """Return a random weight, quantized like the product's models."""
    weight = (torch.randn(matrix.outputs, matrix.inputs, device=device) * 0.02).bfloat16()
    packed, state = quantized.quantize_4bit(
        weight, quant_type="nf4", blocksize=64, compress_statistics=True
    )
    return Copy(packed, state, nf4_weight(packed, state), quantized.dequantize_4bit(packed, state))


def copies_for(matrix: Matrix, cache_bytes: int) -> int:
    """Return how many copies are at least twice the cache, so that none stays in it.

    >>> copies_for(Matrix(36_864, 4608, 1, 1), 50_000_000), copies_for(MATRICES["q"], 50_000_000)
    (2, 11)
    """
    return max(1, -(-2 * cache_bytes // (matrix.outputs * matrix.inputs // 2)))


def ways_to_multiply(
    x: torch.Tensor, copies: list[Copy], blocks: dict[str, Blocks]
) -> dict[str, list[Call]]:
    """Return the ways to multiply rows by name, with a call for each copy."""
    arranged = arrange(x)

    def ours(sizes: Blocks | None) -> list[Call]:
        return [partial(nf4_matmul, x, one.ours, arranged=arranged, blocks=sizes) for one in copies]

    return {
        ARRANGE: [partial(arrange, x)],
        OURS: ours(None),
        # the computation of Linear4bit
        BITSANDBYTES: [
            partial(bitsandbytes.matmul_4bit, x, one.packed, quant_state=one.state)
            for one in copies
        ],
        BF16: [partial(torch.nn.functional.linear, x, one.bf16) for one in copies],
        **{name: ours(sizes) for name, sizes in blocks.items()},
    }


def measure_matrix(
    matrix: Matrix,
    all_rows: Sequence[int],
    blocks: dict[str, Blocks],
    copies: list[Copy],
    clock: Clock,
) -> dict[int, dict[str, float]]:
    """Return the microseconds of each way to multiply, for each number of rows.

    Block sizes with which the kernel fails are left out, and the reason is printed.

    Args:
        matrix: The shape.
        all_rows: Numbers of rows to multiply.
        blocks: Further block sizes of the kernel.
        copies: Weights of that shape, taken in turn.
        clock: Times calls.
    """
    inputs = torch.randn(max(all_rows), matrix.inputs, device=copies[0].packed.device).bfloat16()
    measured: dict[int, dict[str, float]] = {}
    for rows in all_rows:
        measured[rows] = {}
        for name, calls in ways_to_multiply(inputs[:rows], copies, blocks).items():
            try:
                measured[rows][name] = clock(calls)
            except Exception as problem:
                # compilers fail in many ways, and the other block sizes are still worth measuring
                if name not in blocks:
                    raise
                shape = f"{rows} rows of {matrix.outputs} x {matrix.inputs}"
                print(f"{name}, {shape}: {type(problem).__name__}: {problem}", flush=True)
    return measured


def measure_matrices(
    all_rows: Sequence[int], blocks: dict[str, Blocks], device: torch.device, clock: Clock
) -> dict[str, dict[int, dict[str, float]]]:
    """Return the microseconds of all matrices; only one shape at a time is in memory."""
    cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    measured = {}
    for name, matrix in MATRICES.items():
        copies = [make_copy(matrix, device) for _ in range(copies_for(matrix, cache_bytes))]
        measured[name] = measure_matrix(matrix, all_rows, blocks, copies, clock)
    return measured


def sum_layers(measured: dict[str, dict[int, dict[str, float]]]) -> dict[int, dict[str, float]]:
    """Return the milliseconds of all layers' matrices, by number of rows and way.

    Args:
        measured: Microseconds of one matrix, by matrix, rows and way. Ways that failed for a
            matrix are left out.
    """
    sums: dict[int, dict[str, float]] = {}
    for rows in next(iter(measured.values())):
        found = {name: by_rows[rows] for name, by_rows in measured.items()}
        sums[rows] = {}
        for way in found["q"]:
            if way == ARRANGE or not all(way in ways for ways in found.values()):
                continue
            us = sum(MATRICES[name].count * ways[way] for name, ways in found.items())
            if way not in (BITSANDBYTES, BF16):
                us += sum(MATRICES[name].arranged * ways[ARRANGE] for name, ways in found.items())
            sums[rows][way] = LAYERS * us / 1e3
    return sums


def dequantization(device: torch.device) -> dict[str, tuple[Call, Call]]:
    """Return our and their way to dequantize to bfloat16, alone and with the adapter's product."""
    calls: dict[str, tuple[Call, Call]] = {}
    for name in ("q", "gate, up"):
        matrix = MATRICES[name]
        one = make_copy(matrix, device)
        a = torch.randn(RANK, matrix.inputs, device=device).bfloat16()
        b = (torch.randn(matrix.outputs, RANK, device=device) * 0.002).bfloat16()
        theirs = partial(quantized.dequantize_4bit, one.packed, one.state)
        calls[name] = partial(dequantize, one.ours), theirs
        calls[f"{name}, adapter"] = (
            partial(dequantize, one.ours, Factors(a, b, SCALING)),
            lambda theirs=theirs, a=a, b=b: theirs().addmm_(b, a, alpha=SCALING),
        )
    return calls
