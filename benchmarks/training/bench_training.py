"""Training the contest's way and ours, on a model of Gemma 2 27B's shape: tokens a second, memory.

    python benchmarks/training/bench_training.py --model /dev/shm/nf4 --folder /tmp/training

``original`` is unsloth with TRL as in the notebook (``reference.py``), in batches of 4, padded;
``ours`` the product's node ``train`` with ``conf/tuned``'s parameters; ``ours-24gb`` the same with
the settings for a card of 24 GB; ``peft`` TRL and PEFT without unsloth. All sides train on the same
samples, 32 a step: random characters, as long as real conversations (``conversation_lengths.py``).
The model, random weights in NF4, is created if ``--model`` is missing.

*real* counts the tokens of samples, *padded* all computed tokens, both after the first
``--warm-up`` steps, in which kernels are compiled. ``--set SIDE:NAME=VALUE`` changes a parameter
(of ours below ``sft``, of the others a TRL argument), or a side's ``steps``, ``memory_gb`` or
``environment``. A side with a new name starts as ``ours``.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.random_models import SHAPES, find_or_make, random_samples
from benchmarks.harness.recording import device_name, print_table, record
from benchmarks.harness.sides import (
    Side,
    apply_settings,
    choose,
    make_parser,
    read_sides,
    run_side,
    working_folder,
)
from benchmarks.training.conversation_lengths import read_lengths

if TYPE_CHECKING:
    import argparse

STEP_SAMPLES = 32
MAX_LENGTH = 2048
SEED = 3407
HERE = Path(__file__).parent
REFERENCE, PRODUCT = str(HERE / "reference.py"), str(HERE / "product.py")
#: GB (1e9 bytes) that a card of 24 GB, such as an L4 with its 23,034 MiB, has for PyTorch beside
#: half a gigabyte of CUDA's own.
MEMORY_GB_OF_24 = 23.5

OURS: Side = {
    "program": PRODUCT,
    "environment": "tuned",
    "steps": None,
    "memory_gb": None,
    "changes": {},
}
SIDES: dict[str, Side] = {
    "original": {"program": REFERENCE, "way": "unsloth", "steps": None, "changes": {}},
    "ours": OURS,
    "ours-24gb": {
        **OURS,
        "memory_gb": MEMORY_GB_OF_24,
        "changes": {"max_seq_length": MAX_LENGTH, "training.tokens_per_batch": 2048},
    },
    "peft": {"program": REFERENCE, "way": "peft", "steps": 4, "changes": {}},
}
#: For a trial without a GPU, on a tiny model.
ON_CPU = {
    "device": "cpu",
    "backend": "peft",
    "training.bf16": False,
    "training.optim": "adamw_torch",
    "training.gradient_checkpointing": False,
    "training.auto_find_batch_size": False,
}


def usual_samples(count: int, max_length: int = MAX_LENGTH) -> list[tuple[str, str]]:
    """Return samples as long as real conversations, drawn from those that need no truncation."""
    possible = [(p, a) for p, a in read_lengths() if a > 1 and p + a <= max_length]
    return random_samples(random.Random(SEED).sample(possible, count), SEED)


def make_job(side: Side, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Write a side's samples and return its job."""
    samples = options.folder / f"{name}.samples.json"
    # the same number for all sides, even if one skips the last steps: it determines the order
    drawn = usual_samples(options.steps * STEP_SAMPLES)
    samples.write_text(json.dumps(drawn, ensure_ascii=False), "utf-8")
    on_cpu = ON_CPU if side["program"] == PRODUCT and options.device == "cpu" else {}
    return {
        **side,
        "model": str(options.model),
        "samples": str(samples),
        "folder": str(options.folder / f"{name}-checkpoints"),
        "steps": min(side["steps"] or options.steps, options.steps),
        "changes": {**on_cpu, **side["changes"]},
    }


def summarize(result: dict[str, Any], warm_up: int) -> dict[str, Any]:
    """Return a side's figures: tokens a second after the warm-up, memory, losses."""
    seconds = result.get("step_seconds", [])
    first = min(warm_up, max(len(seconds) - 1, 0))
    measured = seconds[first:]
    figures: dict[str, Any] = {
        "status": result["status"],
        "load_seconds": result.get("load_seconds"),
        "steps": len(seconds),
        "warm_up_steps": first,
        "seconds_per_step": round(statistics.mean(measured), 3) if measured else None,
        "step_seconds": [round(one, 3) for one in seconds],
        "memory": result.get("memory", {}),
        "losses": [round(loss, 5) for loss in result.get("losses", [])],
        "tokens": result.get("tokens"),
    }
    for kind, key in (("real", "tokens"), ("padded", "padded_tokens")):
        counts = (result.get(key) or [])[first : len(seconds)]
        rate = round(sum(counts) / sum(measured), 1) if counts and measured else None
        figures[f"{kind}_tokens_per_second"] = rate
    # the median ignores a step in which a kernel was compiled
    rates = [n / s for n, s in zip(result.get("tokens") or [], seconds, strict=False)][first:]
    figures["median_real_tokens_per_second"] = round(statistics.median(rates), 1) if rates else None
    return figures


COLUMNS = {
    "real/s": "real_tokens_per_second",
    "padded/s": "padded_tokens_per_second",
    "steps": "steps",
    "s/step": "seconds_per_step",
    "load s": "load_seconds",
    "allocated GB": "memory.torch_allocated_gb",
    "reserved GB": "memory.torch_reserved_gb",
    "NVML GB": "memory.nvml_device_gb",
    "status": "status",
}


def report(known: dict[str, Side], options: argparse.Namespace) -> None:
    """Print the figures of all calls, and keep them as the benchmark's result."""
    results = read_sides(options.folder, known)
    sides = {name: summarize(one, options.warm_up) for name, one in results.items()}
    print_table(sides, COLUMNS)
    original = sides.get("original", {})
    for row in sides.values():
        for prefix in ("", "median_"):
            key = f"{prefix}real_tokens_per_second"
            rate, theirs = row[key], original.get(key)
            row[f"{prefix}ratio"] = round(rate / theirs, 3) if rate and theirs else None
    result = {
        "ratio": sides.get("ours", {}).get("ratio"),
        "device": device_name(),
        "model": options.shape,
        "sides": sides,
    }
    record("training", result, keep=options.shape != "tiny")


def main() -> None:
    """Make the model, run the sides, print and keep the figures."""
    parser = make_parser(__doc__, SHAPES, SIDES, seconds=270)
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of 32 samples")
    parser.add_argument("--warm-up", type=int, default=2, help="steps that are not measured")
    options = parser.parse_args()
    sides = apply_settings(SIDES, options.set, OURS)
    with working_folder(options) as folder:
        find_or_make(options.model, "nf4", options.shape, options.device)
        for name in choose(options.sides, sides):
            job = make_job(sides[name], name, options)
            run_side(Path(job["program"]), job, folder, name, options.seconds)
        report(sides, options)


if __name__ == "__main__":
    main()
