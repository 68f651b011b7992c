"""Quantizing a model of Gemma 2 27B's shape, the original's way and ours: time and memory.

    python benchmarks/quantization/bench_quantization.py --model /models/bf16 --out /dev/shm/nf4

``original`` is ``from_pretrained`` with ``device_map="auto"`` and a quantization configuration,
then ``save_pretrained`` of model and tokenizer; ``ours`` the product's pipeline ``quantization``
with ``conf/base``'s parameters, run by Kedro on random texts. The 16-bit model, random weights, is
created if it is missing. Each output, 15.6 GB at full size, replaces the one before at ``--out``.

*GB/s* are the 16-bit weights over the time until the 4-bit ones are saved; ours then also evaluates
the result. GPU memory is PyTorch's peak and NVML's above the start; private host memory leaves out
mapped files, resident counts them. ``ratio`` is our peak of GPU memory over the original's.

``--set ours:NAME=VALUE`` changes a parameter.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.random_models import SHAPES, find_or_make
from benchmarks.harness.recording import print_table, record
from benchmarks.harness.sides import (
    Side,
    apply_settings,
    choose,
    make_parser,
    read_sides,
    run_side,
    working_folder,
)

PROGRAM = Path(__file__).with_name("sides.py")
SIDES: dict[str, Side] = {
    name: {"way": name, "environment": "base", "changes": {}} for name in ("ours", "original")
}
COLUMNS = {
    "s": "seconds_until_saved",
    "GB/s": "gb_per_second",
    "GPU GB": "memory_until_saved.torch_allocated_gb",
    "whole run": "memory.torch_allocated_gb",
    "NVML GB": "memory_until_saved.nvml_device_gb",
    "whole run ": "memory.nvml_device_gb",
    "private GB": "memory_until_saved.host_private_gb",
    "resident GB": "memory_until_saved.host_resident_gb",
    "status": "status",
}


def summarize(result: dict[str, Any], source_bytes: int) -> dict[str, Any]:
    """Return a side's figures."""
    phases: dict[str, float] = result.get("phases", {})
    seconds = sum(phases[name] for name in result.get("until_saved", ()))
    return {
        "status": result["status"],
        "phases": {name: round(value, 1) for name, value in phases.items()},
        "seconds_until_saved": round(seconds, 1) if seconds else None,
        "gb_per_second": round(source_bytes / 1e9 / seconds, 3) if seconds else None,
        "written_gb": result.get("written_gb"),
        "memory": result.get("memory", {}),
        "memory_until_saved": result.get("memory_until_saved", {}),
        "process_seconds": result["process_seconds"],
    }


def main() -> None:
    """Make the model, run the sides, print and keep the figures."""
    parser = make_parser(__doc__, SHAPES, SIDES, seconds=270)
    parser.add_argument("--out", type=Path, help="the 4-bit directory")
    options = parser.parse_args()
    sides = apply_settings(SIDES, options.set, SIDES["ours"])
    with working_folder(options) as folder:
        out = (options.out or folder / "nf4").resolve()
        find_or_make(
            options.model, "bf16", options.shape, "cpu" if options.device == "cpu" else None
        )
        source_bytes = sum(file.stat().st_size for file in options.model.glob("*.safetensors"))
        for name in choose(options.sides, sides):
            shutil.rmtree(out, ignore_errors=True)
            out.parent.mkdir(parents=True, exist_ok=True)
            job = {**sides[name], "model": str(options.model), "out": str(out)}
            run_side(PROGRAM, {**job, "device": options.device}, folder, name, options.seconds)
        results = read_sides(folder, sides)
    rows = {name: summarize(one, source_bytes) for name, one in results.items()}
    for name, row in rows.items():
        print_table({phase: {"s": one} for phase, one in row["phases"].items()}, {"s": "s"}, name)
    print_table(rows, COLUMNS)
    peaks = {
        name: row["memory"].get("torch_allocated_gb") or row["memory"].get("host_private_gb")
        for name, row in rows.items()
    }
    ours, theirs = peaks.get("ours"), peaks.get("original")
    result = {
        "ratio": round(ours / theirs, 3) if ours and theirs else None,
        "model": options.shape,
        "source_gb": round(source_bytes / 1e9, 2),
        "sides": rows,
    }
    record("quantization", result, keep=options.shape != "tiny")


if __name__ == "__main__":
    main()
