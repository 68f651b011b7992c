"""The 4-bit matrix multiplication of a generation step against bitsandbytes and bfloat16 weights.

    python benchmarks/generation/bench_generation_kernels.py [--blocks "128,2,4,4,joined;64,3,4,3"]

A few rows are multiplied with random weights in the shape of a Gemma 2 27B layer's seven matrices,
timed on one GPU from CUDA graphs, as in a step of generation, so neither Python nor launches count.
There are enough copies of a weight that the cache never has the next one. Ours includes arranging
the rows, once per input. ``tests/engine/kernels`` checks the results.

``--blocks`` also times other block sizes of the kernel, to choose what ``choose_blocks`` returns
for a device: outputs of a program, programs a processor, warps, stages, and ``joined`` if 64 inputs
are one product; several are separated by semicolons.

``ratio`` is bitsandbytes' time over ours, for all layers and 40 rows.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import bitsandbytes
import bitsandbytes.functional as quantized
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.recording import print_table, record
from ja_instruct.engine.kernels.nf4_matmul import Blocks, arrange, nf4_matmul
from ja_instruct.engine.kernels.nf4_weight import Nf4Weight, nf4_weight
from ja_instruct.engine.kernels.triton import is_available

Call = Callable[[], Any]
#: Returns the microseconds of a call; the calls are the same work on different data.
Clock = Callable[[Sequence[Call]], float]

ALL_ROWS = (2, 8, 16, 32, 40, 64)
#: The ratio is that of a step with this number of rows.
ROWS = 40
BLOCKS = "OUTPUTS,PROGRAMS,WARPS,STAGES[,joined]"
OURS, BITSANDBYTES, BF16 = "ours", "bitsandbytes", "bfloat16"
#: Not a way to multiply: arranging the rows, which ours needs once per input.
ARRANGE = "arrange"


class Matrix(NamedTuple):
    """A shape, how many a layer has, and how many inputs a layer arranges for them."""

    outputs: int
    inputs: int
    count: int
    arranged: int


LAYERS = 46
#: Queries, keys and values have the same input, and so have gate and up.
MATRICES = {
    "q": Matrix(4096, 4608, 1, 1),
    "k, v": Matrix(2048, 4608, 2, 0),
    "o": Matrix(4608, 4096, 1, 1),
    "gate, up": Matrix(36_864, 4608, 2, 1),
    "down": Matrix(4608, 36_864, 1, 1),
}


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
    bf16 = quantized.dequantize_4bit(packed, state)
    return Copy(packed, state, nf4_weight(packed, state), bf16)


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
    all_rows: Sequence[int], blocks: dict[str, Blocks], copies: list[Copy], clock: Clock
) -> dict[int, dict[str, float]]:
    """Return the microseconds of each way to multiply, for each number of rows.

    Block sizes with which the kernel fails are left out, and the reason is printed.
    """
    weight = copies[0].bf16
    inputs = torch.randn(max(all_rows), weight.shape[1], device=weight.device).bfloat16()
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
                shape = f"{rows} rows of {tuple(weight.shape)}"
                print(f"{name}, {shape}: {type(problem).__name__}: {problem}", flush=True)
    return measured


def sum_layers(measured: dict[str, dict[int, dict[str, float]]]) -> dict[int, dict[str, float]]:
    """Return the milliseconds of all layers, by number of rows and way.

    ``measured`` has the microseconds by matrix, rows and way; a way that lacks one is left out.
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
            sums[rows][way] = round(LAYERS * us / 1e3, 4)
    return sums


def graph_microseconds(calls: Sequence[Call]) -> float:
    """Return the median microseconds of a call; the calls are taken in turn."""
    from triton.testing import do_bench_cudagraph

    def take_turns() -> None:
        for call in calls:
            call()

    milliseconds = do_bench_cudagraph(take_turns, return_mode="median")
    # others cannot use a graph's memory until it is returned
    torch.cuda.empty_cache()
    return round(1e3 * float(milliseconds) / len(calls), 2)


def parse_blocks(text: str) -> dict[str, Blocks]:
    """Return block sizes by their text; ``programs`` are those of a processor.

    >>> parse_blocks("128,2,4,4,joined;64,3,4,3")["64,3,4,3"]
    Blocks(outputs=64, programs=3, warps=4, stages=3, joined=False)

    Raises:
        argparse.ArgumentTypeError: The text has another form.
    """
    blocks = {}
    for name in filter(None, text.replace(" ", "").split(";")):
        found = re.fullmatch(r"(\d+),(\d+),(\d+),(\d+)(,joined)?", name)
        if found is None:
            raise argparse.ArgumentTypeError(f"'{name}': give {BLOCKS}")
        *numbers, joined = found.groups()
        blocks[name] = Blocks(*map(int, numbers), joined=bool(joined))
    return blocks


def missing_requirement() -> str | None:
    """Return why this benchmark cannot run here, if it cannot."""
    if not torch.cuda.is_available():
        return "no CUDA device is found; the kernels need one, run this on a machine with a GPU"
    if not is_available(torch.device("cuda", 0)):
        return "the kernels need Triton and a GPU of compute capability 8.0 or more"
    return None


@torch.no_grad()
def main() -> None:
    """Time the kernels, print and keep the figures; exit with the reason if they cannot run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", type=parse_blocks, default={}, metavar=f"{BLOCKS};...")
    options = parser.parse_args()
    if reason := missing_requirement():
        sys.exit(f"bench_generation_kernels.py cannot run here: {reason}")
    device = torch.device("cuda", 0)
    torch.manual_seed(0)
    properties = torch.cuda.get_device_properties(device)
    blocks = {
        name: sizes._replace(programs=sizes.programs * properties.multi_processor_count)
        for name, sizes in options.blocks.items()
    }
    measured = {}
    for name, matrix in MATRICES.items():
        # one shape at a time is in memory
        count = copies_for(matrix, properties.L2_cache_size)
        copies = [make_copy(matrix, device) for _ in range(count)]
        measured[name] = measure_matrix(ALL_ROWS, blocks, copies, graph_microseconds)
    sums = sum_layers(measured)
    print_table(
        {f"{rows} rows": by_way for rows, by_way in sums.items()},
        {way: f"{way}:.2f" for way in sums[ROWS]},
        "all layers, ms",
    )
    result = {
        "ratio": round(sums[ROWS][BITSANDBYTES] / sums[ROWS][OURS], 3),
        "device": properties.name,
        "ms_of_all_layers": sums,
        "us_by_matrix": measured,
    }
    record("generation_kernels", result)


if __name__ == "__main__":
    main()
