"""The kernels of a step of generation and of a prompt's piece, each against what it replaces.

    python benchmarks/generation/bench_generation_kernels.py [--cuts "128,2,4,4,joined;64,3,4,3"]

All shapes are Gemma 2 27B's, all numbers are random, and all calls are timed on one GPU from CUDA
graphs (``kernel_timing.py``):

- *matrices* (``kernel_matrices.py``): a few rows times a layer's seven matrices in four bits, the
  adapter off, against bitsandbytes' own way and against bfloat16 weights. There are so many copies
  of a weight that the cache holds nothing of the next one. Ours includes the ordering of the rows,
  once for each input. Errors are against float64, with weights that bitsandbytes writes out in
  float32.
- *writing out*: a matrix in bfloat16, as a prompt is multiplied with it, alone and with what an
  adapter adds to it, against bitsandbytes' kernel and PyTorch's product. Errors are against
  float32.
- *prompt attention*, *decode attention* and *fused layers* (``kernel_operations.py``) against
  PyTorch's operations and transformers' modules. Errors are against float32.

``--cuts`` also times other ways to cut the 4-bit kernel's work, to choose what ``choose_blocks``
returns for a device: outputs of a program, programs a processor, warps, stages, and ``joined``
where 64 inputs are to be one product; several are parted by semicolons.

*times* is how many times as fast ours is, a rate over theirs, and the last line's ``ratio`` that of
all matrices for 40 rows over bitsandbytes.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.recording import record

if TYPE_CHECKING:
    from ja_instruct.engine.kernels.nf4_matmul import Blocks

SEED = 0
LAYERS = 46
ALL_ROWS = (2, 8, 16, 32, 40, 64)
#: Of a step, for which the ratio is.
ROWS = 40
#: Of a graph, so that one is milliseconds long.
MATRICES_A_GRAPH, ATTENTIONS_A_GRAPH, LAYERS_A_GRAPH = 48, 8, 100
JOINED = "joined"


def parse_cuts(text: str) -> dict[str, Blocks]:
    """Return cuts by what they are called, ``programs`` being those of a processor.

    >>> parse_cuts("128,2,4,4,joined;64,3,4,3")["64,3,4,3"]
    Blocks(outputs=64, programs=3, warps=4, stages=3, joined=False)

    Raises:
        argparse.ArgumentTypeError: It is no list of cuts, or no kernel can be cut so.
    """
    from ja_instruct.engine.kernels.nf4_matmul import Blocks

    cuts = {}
    for name in filter(None, (one.replace(" ", "") for one in text.split(";"))):
        *numbers, last = name.split(",")
        joined = last == JOINED
        numbers += [] if joined else [last]
        if len(numbers) != 4 or not all(number.isdecimal() for number in numbers):
            raise argparse.ArgumentTypeError(
                f"'{name}' is no cut: give OUTPUTS,PROGRAMS,WARPS,STAGES or these and ,{JOINED}"
            )
        outputs, programs, warps, stages = map(int, numbers)
        powers = all(number & (number - 1) == 0 for number in (outputs, warps))
        if outputs < 16 or not powers or 0 in (programs, warps, stages):
            raise argparse.ArgumentTypeError(
                f"'{name}' is no cut: outputs are a power of 2 from 16 on, warps a power of 2, and "
                "nothing is 0"
            )
        cuts[name] = Blocks(outputs, programs, warps, stages, joined)
    return cuts


def sum_layers(
    measured: dict[str, dict[int, dict[str, dict[str, float]]]],
) -> dict[int, dict[str, dict[str, float | None]]]:
    """Return what each way takes for all layers' matrices, by number of rows.

    Args:
        measured: By matrix, rows and way: microseconds ``us`` of one matrix, and its ``error``.

    Returns:
        By rows and way: milliseconds ``ms``, the largest ``error``, and ``ratio``, how many times
        as fast ours is; nothing of a way that did not run for some matrix.
    """
    from benchmarks.generation.kernel_matrices import ARRANGING, BF16, BITSANDBYTES, MATRICES, OURS

    sums: dict[int, dict[str, dict[str, float | None]]] = {}
    for rows in next(iter(measured.values())):
        found = {name: by_rows[rows] for name, by_rows in measured.items()}
        ways = [way for way in found["q"] if way != ARRANGING]
        sums[rows] = {}
        for way in ways:
            if not all(way in ways_of_one for ways_of_one in found.values()):
                continue
            us = sum(MATRICES[name].count * one[way]["us"] for name, one in found.items())
            if way not in (BITSANDBYTES, BF16):
                us += sum(
                    MATRICES[name].arranged * one[ARRANGING]["us"] for name, one in found.items()
                )
            error = max(one[way]["error"] for one in found.values())
            sums[rows][way] = {"ms": LAYERS * us / 1e3, "error": error}
        for row in sums[rows].values():
            row["ratio"] = row["ms"] / sums[rows][OURS]["ms"]
    return sums


def print_sums(sums: dict[int, dict[str, dict[str, Any]]]) -> None:
    """Print a line a number of rows: milliseconds, times, errors."""
    ways = list(dict.fromkeys(way for by_way in sums.values() for way in by_way))
    wide = max(17, *(len(way) + 2 for way in ways))
    print(f"\n{'matrices':<10}" + "".join(f"{way:>{wide}}" for way in ways))
    units = (("ms", ".2f", "ms"), ("ratio", ".2f", "times ours"), ("error", ".1e", "error"))
    for key, form, unit in units:
        for rows, by_way in sums.items():
            cells = [format(by_way[way][key], form) if way in by_way else "-" for way in ways]
            line = "".join(f"{cell:>{wide}}" for cell in cells)
            print(f"{f'{rows} rows':<10}{line}  {unit}")


def print_matrices(measured: dict[str, dict[int, dict[str, dict[str, float]]]], rows: int) -> None:
    """Print a line a matrix: microseconds of one, for one number of rows."""
    ways = list(dict.fromkeys(way for by_rows in measured.values() for way in by_rows[rows]))
    wide = max(17, *(len(way) + 2 for way in ways))
    print(f"\n{f'{rows} rows':<10}" + "".join(f"{way:>{wide}}" for way in ways))
    for name, by_rows in measured.items():
        found = by_rows[rows]
        cells = [format(found[way]["us"], ".1f") if way in found else "-" for way in ways]
        print(f"{name:<10}" + "".join(f"{cell:>{wide}}" for cell in cells) + "  us")


def print_comparisons(title: str, rows: dict[str, dict[str, float]]) -> None:
    """Print a line a comparison."""
    columns = {
        "ours us": ("ours_us", ".1f"),
        "theirs us": ("theirs_us", ".1f"),
        "times": ("ratio", ".2f"),
        "our error": ("ours_error", ".1e"),
        "their error": ("theirs_error", ".1e"),
    }
    print(f"\n{title:<24}" + "".join(f"{column:>13}" for column in columns))
    for name, row in rows.items():
        cells = "".join(f"{format(row[key], form):>13}" for key, form in columns.values())
        print(f"{name:<24}{cells}")
    sys.stdout.flush()


def rounded(figures: Any) -> Any:
    """Return nested figures with five digits each."""
    if isinstance(figures, dict):
        return {str(key): rounded(value) for key, value in figures.items()}
    return float(f"{figures:.5g}") if isinstance(figures, float) else figures


def find_lack() -> str | None:
    """Return why this benchmark cannot run here, if it cannot."""
    import torch

    from ja_instruct.engine.kernels.triton import is_available

    if not torch.cuda.is_available():
        return "no CUDA device is found; the kernels need one, run this on a machine with a GPU"
    if not is_available(torch.device("cuda", 0)):
        return "the kernels need Triton and a GPU of compute capability 8.0 or more"
    return None


def measure(cuts: dict[str, Blocks]) -> dict[str, Any]:
    """Time everything, print the tables, and return the result."""
    import torch

    from benchmarks.generation.kernel_matrices import (
        BITSANDBYTES,
        compare_writing_out,
        measure_matrices,
    )
    from benchmarks.generation.kernel_operations import (
        compare_decoding,
        compare_layers,
        compare_pieces,
    )
    from benchmarks.generation.kernel_timing import graph_clock

    device = torch.device("cuda", 0)
    torch.manual_seed(SEED)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    cuts = {name: cut._replace(programs=cut.programs * processors) for name, cut in cuts.items()}
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}", flush=True)
    with torch.no_grad():
        measured = measure_matrices(ALL_ROWS, cuts, device, graph_clock(MATRICES_A_GRAPH))
        sums = sum_layers(measured)
        print_sums(sums)
        print_matrices(measured, ROWS)
        operations = {}
        for title, compare, calls in (
            ("writing out", compare_writing_out, ATTENTIONS_A_GRAPH),
            ("prompt attention", compare_pieces, ATTENTIONS_A_GRAPH),
            ("decode attention", compare_decoding, ATTENTIONS_A_GRAPH),
            ("fused layers", compare_layers, LAYERS_A_GRAPH),
        ):
            rows = compare(device, graph_clock(calls))
            print_comparisons(title, rows)
            operations[title.replace(" ", "_")] = rows
    result = {
        "ratio": sums[ROWS][BITSANDBYTES]["ratio"],
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "matrices_of_all_layers": sums,
        "matrices": measured,
        **operations,
    }
    return rounded(result)  # type: ignore[no-any-return]


def main() -> None:
    """Time the kernels, or say why they cannot be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--cuts",
        type=parse_cuts,
        default={},
        metavar="CUT;CUT",
        help=f"other cuts of the 4-bit kernel: OUTPUTS,PROGRAMS,WARPS,STAGES[,{JOINED}]",
    )
    options = parser.parse_args()
    if lack := find_lack():
        sys.exit(f"bench_generation_kernels.py cannot run here: {lack}")
    begun = time.perf_counter()
    result = measure(options.cuts)
    print(f"\n{time.perf_counter() - begun:.0f} s")
    record("generation_kernels", result)


if __name__ == "__main__":
    main()
