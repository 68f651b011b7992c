"""The kernels of a generation step and of a prefill chunk, each against what it replaces.

    python benchmarks/generation/bench_generation_kernels.py [--blocks "128,2,4,4,joined;64,3,4,3"]

All shapes are Gemma 2 27B's, all numbers are random, and all calls are timed on one GPU from CUDA
graphs, as in a step of generation, so neither Python nor launches count. ``tests/engine`` checks
the kernels' results.

- *matrices* (``kernel_matrices.py``): a few rows times a layer's seven matrices in four bits, the
  adapter off, against bitsandbytes and against bfloat16 weights. There are enough copies of a
  weight that the cache never has the next one. Ours includes arranging the rows, once per input.
- *dequantization*: a matrix in bfloat16, as used in a prefill, alone and with the adapter's product
  added, against bitsandbytes' kernel and PyTorch's product.
- *prefill attention*, *decode attention* and *fused layers* (``kernel_operations.py``) against
  PyTorch's operations and transformers' modules.

``--blocks`` also times other block sizes of the 4-bit kernel, to choose what ``choose_blocks``
returns for a device: outputs of a program, programs a processor, warps, stages, and ``joined`` if
64 inputs are one product; several are separated by semicolons.

*times* is their time over ours; the last line's ``ratio`` is that of bitsandbytes for all matrices
and 40 rows.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.recording import print_table, record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ja_instruct.engine.kernels.nf4_matmul import Blocks

ALL_ROWS = (2, 8, 16, 32, 40, 64)
#: The ratio is that of a step with this number of rows.
ROWS = 40
#: Length of a timed CUDA graph.
GRAPH_MS = 20
JOINED = "joined"


def parse_blocks(text: str) -> dict[str, Blocks]:
    """Return block sizes by their text; ``programs`` are those of a processor.

    >>> parse_blocks("128,2,4,4,joined;64,3,4,3")["64,3,4,3"]
    Blocks(outputs=64, programs=3, warps=4, stages=3, joined=False)

    Raises:
        argparse.ArgumentTypeError: The text has another form, or the kernel cannot have the sizes.
    """
    from ja_instruct.engine.kernels.nf4_matmul import Blocks

    blocks = {}
    for name in filter(None, text.replace(" ", "").split(";")):
        *numbers, last = name.split(",")
        numbers += [] if last == JOINED else [last]
        if len(numbers) != 4 or not all(number.isdecimal() for number in numbers):
            raise argparse.ArgumentTypeError(
                f"'{name}': give OUTPUTS,PROGRAMS,WARPS,STAGES, optionally followed by ,{JOINED}"
            )
        outputs, programs, warps, stages = map(int, numbers)
        powers = all(number & (number - 1) == 0 for number in (outputs, warps))
        if outputs < 16 or not powers or 0 in (programs, warps, stages):
            raise argparse.ArgumentTypeError(
                f"'{name}': outputs must be a power of 2 from 16 on, warps a power of 2, and no "
                "number may be 0"
            )
        blocks[name] = Blocks(outputs, programs, warps, stages, last == JOINED)
    return blocks


def graph_microseconds(calls: Sequence[Callable[[], object]]) -> float:
    """Return the median microseconds of a call; the calls are taken in turn."""
    import torch
    from triton.testing import do_bench_cudagraph

    def take_turns() -> None:
        for call in calls:
            call()

    milliseconds = do_bench_cudagraph(take_turns, rep=GRAPH_MS, return_mode="median")
    # others cannot use a graph's memory until it is returned
    torch.cuda.empty_cache()
    return float(f"{1e3 * float(milliseconds) / len(calls):.5g}")


def missing_requirement() -> str | None:
    """Return why this benchmark cannot run here, if it cannot."""
    import torch

    from ja_instruct.engine.kernels.triton import is_available

    if not torch.cuda.is_available():
        return "no CUDA device is found; the kernels need one, run this on a machine with a GPU"
    if not is_available(torch.device("cuda", 0)):
        return "the kernels need Triton and a GPU of compute capability 8.0 or more"
    return None


def measure(blocks: dict[str, Blocks]) -> dict[str, Any]:
    """Time everything, print the tables, and return the result."""
    import torch

    from benchmarks.generation import kernel_matrices as matrices
    from benchmarks.generation import kernel_operations as operations

    device = torch.device("cuda", 0)
    torch.manual_seed(0)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    blocks = {
        name: sizes._replace(programs=sizes.programs * processors) for name, sizes in blocks.items()
    }
    measured = matrices.measure_matrices(ALL_ROWS, blocks, device, graph_microseconds)
    sums = matrices.sum_layers(measured)
    ours = sums[ROWS][matrices.OURS]
    print_table(
        {f"{rows} rows": by_way for rows, by_way in sums.items()},
        {way: f"{way}:.2f" for way in sums[ROWS]},
        "all layers, ms",
    )
    ways = dict.fromkeys(way for by_rows in measured.values() for way in by_rows[ROWS])
    by_matrix = {name: by_rows[ROWS] for name, by_rows in measured.items()}
    print_table(by_matrix, {way: f"{way}:.1f" for way in ways}, f"{ROWS} rows, us")
    result: dict[str, Any] = {
        "ratio": round(sums[ROWS][matrices.BITSANDBYTES] / ours, 3),
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "ms_of_all_layers": sums,
        "us_by_matrix": measured,
    }
    for title, make_calls in (
        ("dequantization", matrices.dequantization),
        ("prefill attention", operations.prefill),
        ("decode attention", operations.decoding),
        ("fused layers", operations.layers),
    ):
        rows = {}
        for name, calls in make_calls(device).items():
            ours_us, theirs_us = (graph_microseconds([call]) for call in calls)
            rows[name] = {
                "ours_us": ours_us,
                "theirs_us": theirs_us,
                "ratio": round(theirs_us / ours_us, 3),
            }
        columns = {"ours us": "ours_us:.1f", "theirs us": "theirs_us:.1f", "times": "ratio:.2f"}
        print_table(rows, columns, title)
        result[title.replace(" ", "_")] = rows
    return result


def main() -> None:
    """Time the kernels, or exit with the reason why they cannot run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--blocks",
        type=parse_blocks,
        default={},
        metavar="SIZES;SIZES",
        help=f"other block sizes of the 4-bit kernel: OUTPUTS,PROGRAMS,WARPS,STAGES[,{JOINED}]",
    )
    options = parser.parse_args()
    if reason := missing_requirement():
        sys.exit(f"bench_generation_kernels.py cannot run here: {reason}")
    import torch

    with torch.no_grad():
        record("generation_kernels", measure(options.blocks))


if __name__ == "__main__":
    main()
