"""Quantizing a model of Gemma 2 27B's shape, the original's way and ours: time and memory.

    python benchmarks/quantization/bench_quantization.py --model /models/bf16 --out /dev/shm/nf4

``original`` is ``from_pretrained`` with ``device_map="auto"`` and a quantization configuration,
then ``save_pretrained`` of model and tokenizer; ``ours`` the product's pipeline ``quantization``
with ``conf/base``'s parameters, node by node as Kedro runs it, on random texts. Each has a process
of its own. The 16-bit model, random weights (``random_models.py``), is made unless it is there; the
outputs, 15.6 GB at full size, lie in turn at ``--out``, and the last one stays (``--keep``: all, by
side).

*GB/s* is what was read, in 16 bits, over all the time up to the saved 4 bits: of ours that is the
node that quantizes, without those that judge the result afterwards, which have lines of their own.
Of the GPU's memory PyTorch's most and what NVML saw above the beginning; of the host's what is the
process's own, not a view of a file, and the most that was resident. ``ratio`` is our peak of the
GPU's memory over the original's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.random_models import SHAPES, find_or_make
from benchmarks.harness.recording import record
from benchmarks.harness.sides import read_side, run_side

PROGRAM = Path(__file__).with_name("sides.py")
SIDES = ("ours", "original")


def make_job(side: str, options: argparse.Namespace, bits_16: Path, out: Path) -> dict[str, Any]:
    """Return what a side's process is to do."""
    changes = {}
    for setting in options.set:
        name, equals, value = setting.partition("=")
        if not equals:
            sys.exit(f"--set {setting}: give NAME=VALUE, such as quantization.device=cpu")
        changes[name] = value
    return {
        "side": side,
        "model": str(bits_16),
        "out": str(out),
        "device": options.device,
        "environment": options.environment,
        "changes": changes,
    }


def summarize(result: dict[str, Any], source_bytes: int) -> dict[str, Any]:
    """Return a side's figures."""
    phases: dict[str, float] = result.get("phases", {})
    # what comes after the weights are saved judges them
    until_saved = result.get("until_saved")
    seconds = sum(phases[name] for name in until_saved) if until_saved else None
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


MEMORY = {
    "torch_allocated_gb": "GPU, PyTorch",
    "torch_reserved_gb": "GPU, kept by PyTorch",
    "nvml_device_gb": "GPU, NVML",
    "host_private_gb": "host, private",
    "host_resident_gb": "host, resident",
}


def print_table(sides: dict[str, dict[str, Any]]) -> None:
    """Print the sides for people."""
    for name, row in sides.items():
        print(f"\n{name}: {row['status']}")
        for phase, seconds in row["phases"].items():
            print(f"  {phase:<36}{seconds:>9.1f} s")
        print(f"  {'until the weights are saved':<36}{row['seconds_until_saved']!s:>9} s")
        print(f"  {'16-bit weights':<36}{row['gb_per_second']!s:>9} GB/s")
        for key, label in MEMORY.items():
            peak, saved = row["memory"].get(key), row["memory_until_saved"].get(key)
            print(f"  {label:<36}{peak!s:>9} GB, until saved {saved}")


def report(options: argparse.Namespace, folder: Path, source_bytes: int) -> None:
    """Print what all calls have measured, and keep it as the benchmark's result."""
    results = {side: read_side(folder, side) for side in SIDES}
    sides = {side: summarize(one, source_bytes) for side, one in results.items() if one}
    print_table(sides)
    peaks = {
        side: row["memory"].get("torch_allocated_gb") or row["memory"].get("host_private_gb")
        for side, row in sides.items()
    }
    ours, theirs = peaks.get("ours"), peaks.get("original")
    result = {
        "ratio": round(ours / theirs, 3) if ours and theirs else None,
        "model": options.shape,
        "source_gb": round(source_bytes / 1e9, 2),
        "sides": sides,
    }
    if options.shape == "tiny":
        print(json.dumps(result))
    else:
        record("quantization", result)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="16-bit directory; made unless it is there")
    parser.add_argument("--out", type=Path, help="where the 4-bit directory goes")
    parser.add_argument("--keep", action="store_true", help="keep each side's, as OUT-<side>")
    parser.add_argument("--shape", choices=list(SHAPES), default="gemma-2-27b")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--environment", default="base", help="whose parameters ours takes")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--seconds", type=float, default=270, help="a side's time at most")
    parser.add_argument("--folder", type=Path, help="where sides' results are kept")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    return parser.parse_args()


def main() -> None:
    """Make the model, run the sides, print and keep the figures."""
    options = parse_arguments()
    chosen = [side for side in options.sides.split(",") if side]
    unknown = sorted(set(chosen) - set(SIDES))
    if unknown:
        sys.exit(f"no sides {', '.join(unknown)}; there are {', '.join(SIDES)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary) / "sides").resolve()
        model = (options.model or Path(temporary) / "bf16").resolve()
        out = (options.out or Path(temporary) / "nf4").resolve()
        find_or_make(model, "bf16", options.shape, "cpu" if options.device == "cpu" else None)
        source_bytes = sum(path.stat().st_size for path in model.glob("*.safetensors"))
        for side in chosen:
            target = out.with_name(f"{out.name}-{side}") if options.keep else out
            if target.exists():
                # made by an earlier side or call
                shutil.rmtree(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(target.parent).free
            print(f"{side}: to {target}, free {free / 1e9:.1f} GB", flush=True)
            job = make_job(side, options, model, target)
            run_side(PROGRAM, job, folder, side, options.seconds)
        report(options, folder, source_bytes)


if __name__ == "__main__":
    main()
