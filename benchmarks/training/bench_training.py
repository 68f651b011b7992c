"""Training the contest's way and ours, on a model of Gemma 2 27B's shape: tokens a second, memory.

    python benchmarks/training/bench_training.py --model /dev/shm/nf4 --folder /tmp/training

``original`` is unsloth with TRL as the notebook had it (``reference.py``), batches of 4
padded to their longest; ``ours`` the product's node ``train`` with ``conf/tuned``'s parameters;
``ours-24gb`` the same with what a card of 24 GB needs, PyTorch given no more than there would be;
``ours-24gb-longest`` a step of it in which every sample is as long as may be; ``peft`` TRL and PEFT
without unsloth, some steps for the record. Each side has a process of its own, and all train on the
same samples, 32 a step: random characters, as many tokens as the real conversations have
(``conversation_lengths.py``).

*real* counts the tokens of samples, *padded* all that was computed. Both are taken over the steps
after the first ``--warm-up``, in which kernels are compiled. Of the memory the table has PyTorch's
most, what it held in reserve, and what NVML saw above the beginning. The model, random weights in
NF4, is made unless it is there.

``--model DIR --samples FILE`` trains on a real model and real texts instead: JSON Lines with
``instruction`` and ``response``, such as ``filtered_pairs``. Then the losses are worth comparing,
step by step; ``ours-recipe-loss`` counts the question in the loss, as the recipe does.

``--sides`` says which to run; a folder keeps what was measured, and the table and the last line
hold all sides that it has. ``--set SIDE:NAME=VALUE`` changes a parameter (of ours below ``sft``, of
the others an argument of TRL's), or a side's ``steps``, ``memory_gb`` or ``environment``. A side of
a new name is one of ours: ``--set ours-8k:training.tokens_per_batch=8192 --sides ours-8k``.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.random_models import SHAPES, find_or_make
from benchmarks.harness.recording import record
from benchmarks.harness.sides import apply_settings, read_side, run_side
from benchmarks.training.samples import longest_samples, real_samples, usual_samples

STEP_SAMPLES = 32
MAX_LENGTH = 2048
HERE = Path(__file__).parent
REFERENCE, PRODUCT = HERE / "reference.py", HERE / "product.py"
#: GB (1e9 bytes) that a card of 24 GB, such as an L4 with its 23,034 MiB, has for PyTorch beside
#: half a gigabyte of CUDA's own.
MEMORY_GB_OF_24 = 23.5

Side = dict[str, Any]
OURS: Side = {
    "program": str(PRODUCT),
    "environment": "tuned",
    "steps": None,
    "memory_gb": None,
    "longest": False,
    "changes": {},
}
FOR_24_GB = {"max_seq_length": MAX_LENGTH, "training.tokens_per_batch": 2048}
SIDES: dict[str, Side] = {
    "original": {"program": str(REFERENCE), "way": "unsloth", "steps": None, "changes": {}},
    "ours": OURS,
    "ours-24gb": {**OURS, "memory_gb": MEMORY_GB_OF_24, "changes": FOR_24_GB},
    "ours-24gb-longest": {
        **OURS,
        "memory_gb": MEMORY_GB_OF_24,
        "changes": FOR_24_GB,
        "longest": True,
        "steps": 1,
    },
    "peft": {"program": str(REFERENCE), "way": "peft", "steps": 4, "changes": {}},
    "ours-recipe-loss": {**OURS, "changes": {"completion_only_loss": False}},
}
DEFAULT_SIDES = ("original", "ours", "ours-24gb", "ours-24gb-longest", "peft")
#: So that all can be tried without a GPU, on a tiny model.
ON_CPU = {
    "device": "cpu",
    "backend": "peft",
    "training.bf16": False,
    "training.optim": "adamw_torch",
    "training.gradient_checkpointing": False,
    "training.auto_find_batch_size": False,
}


def make_job(side: Side, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Write a side's samples and return its job."""
    steps = min(side["steps"] or options.steps, options.steps)
    samples = options.folder / f"{name}.samples.json"
    # as many for all, though a side may leave out the last steps: their number decides the order
    count = options.steps * STEP_SAMPLES
    if side.get("longest"):
        drawn = longest_samples(count, MAX_LENGTH)
    elif options.samples is None:
        drawn = usual_samples(count, options.max_length)
    else:
        drawn = real_samples(options.samples, options.model, count, options.max_length)
    samples.write_text(json.dumps(drawn, ensure_ascii=False), "utf-8")
    changes = dict(side["changes"])
    ours = side["program"] == str(PRODUCT)
    if options.warmup_steps is not None:
        key = "training.warmup_steps" if ours else "warmup_steps"
        changes = {key: options.warmup_steps, **changes}
    if ours and options.device == "cpu":
        changes = {**ON_CPU, **changes}
    return {
        **side,
        "model": str(options.model),
        "samples": str(samples),
        "folder": str(options.folder / f"{name}-checkpoints"),
        "steps": steps,
        "changes": changes,
    }


def summarize(result: dict[str, Any], warm_up: int) -> dict[str, Any]:
    """Return a side's figures: tokens a second after the warm-up, memory, losses."""
    seconds = result.get("step_seconds", [])
    first = min(warm_up, max(len(seconds) - 1, 0))
    figures: dict[str, Any] = {
        "status": result["status"],
        "load_seconds": result.get("load_seconds"),
        "steps": len(seconds),
        "warm_up_steps": first,
        "warm_up_seconds": round(sum(seconds[:first]), 1),
        "step_seconds": [round(one, 3) for one in seconds],
        "memory": result.get("memory", {}),
        "losses": [round(loss, 5) for loss in result.get("losses", [])],
        "tokens": result.get("tokens"),
    }
    for kind, key in (("real", "tokens"), ("padded", "padded_tokens")):
        counted = result.get(key)
        measured = sum(seconds[first:])
        figures[f"{kind}_tokens_per_second"] = (
            round(sum(counted[first : len(seconds)]) / measured, 1)
            if counted and measured
            else None
        )
    # a step in which a kernel was compiled weighs nothing here
    rates = [n / s for n, s in zip(result.get("tokens") or [], seconds, strict=False)][first:]
    figures["median_real_tokens_per_second"] = round(statistics.median(rates), 1) if rates else None
    return figures


def compare_losses(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return both sides' losses by step, and their largest difference after as many real tokens."""
    pairs = list(zip(one["losses"], other["losses"], strict=False))
    tokens = one["tokens"], other["tokens"]
    same = None not in tokens and tokens[0][: len(pairs)] == tokens[1][: len(pairs)]
    return {
        "same_tokens_by_step": same,
        "largest_difference": round(max((abs(a - b) for a, b in pairs), default=0.0), 5),
        "mean_difference": round(sum(b - a for a, b in pairs) / max(len(pairs), 1), 5),
        "losses": pairs,
    }


MEMORY_KEYS = ("torch_allocated", "torch_reserved", "nvml_device")


def print_table(sides: dict[str, dict[str, Any]]) -> None:
    """Print the sides for people."""
    columns = ("real/s", "padded/s", "steps", "s a step", "load s", "GB", "kept", "NVML", "loss")
    print(f"\n{'':<20}" + "".join(f"{column:>11}" for column in columns))
    for name, row in sides.items():
        after = row["step_seconds"][row["warm_up_steps"] :]
        cells = [
            row["real_tokens_per_second"],
            row["padded_tokens_per_second"],
            row["steps"],
            round(sum(after) / len(after), 2) if after else None,
            row["load_seconds"],
            *(row["memory"].get(f"{key}_gb") for key in MEMORY_KEYS),
            row["losses"][-1] if row["losses"] else None,
        ]
        shown = "".join(f"{'-' if cell is None else cell:>11}" for cell in cells)
        print(f"{name:<20}{shown}" + ("" if row["status"] == "done" else f"  {row['status']}"))


def print_losses(comparison: dict[str, Any], names: tuple[str, str]) -> None:
    """Print two sides' losses side by side."""
    print(f"\n{'step':>5}{names[0]:>20}{names[1]:>20}{'difference':>12}")
    for step, (one, other) in enumerate(comparison["losses"], start=1):
        print(f"{step:>5}{one:>20.5f}{other:>20.5f}{other - one:>12.5f}")
    print(
        f"largest difference {comparison['largest_difference']}, mean "
        f"{comparison['mean_difference']}; the same number of real tokens in every step: "
        f"{comparison['same_tokens_by_step']}"
    )


def report(known: list[str], options: argparse.Namespace) -> None:
    """Print what all calls have measured, and keep it as the benchmark's result."""
    results = {name: read_side(options.folder, name) for name in known}
    sides = {name: summarize(one, options.warm_up) for name, one in results.items() if one}
    print_table(sides)
    original = sides.get("original", {})
    for row in sides.values():
        for prefix in ("", "median_"):
            key = f"{prefix}real_tokens_per_second"
            rate, theirs = row[key], original.get(key)
            row[f"{prefix}ratio"] = round(rate / theirs, 3) if rate and theirs else None
    reference: str = options.reference
    comparisons = {}
    for name in sides if reference in sides else ():
        if name != reference and not SIDES.get(name, OURS).get("longest"):
            comparisons[name] = compare_losses(sides[reference], sides[name])
            if options.samples is not None:
                print_losses(comparisons[name], (reference, name))
    result = {
        "ratio": sides.get("ours", {}).get("ratio"),
        "device": device_name(),
        "model": options.shape if options.samples is None else options.model.name,
        "sides": sides,
        "losses_beside_" + reference: comparisons,
    }
    if options.shape == "tiny":
        print(json.dumps(result))
    else:
        record("training" if options.samples is None else "training_losses", result)


def device_name() -> str:
    """Return the GPU's name, or CPU."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="NF4 directory; made unless it is there")
    parser.add_argument("--shape", choices=list(SHAPES), default="gemma-2-27b")
    parser.add_argument("--samples", type=Path, help="real texts, instruction and response")
    parser.add_argument("--sides", default=",".join(DEFAULT_SIDES))
    parser.add_argument("--set", action="append", default=[], metavar="SIDE:NAME=VALUE")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of 32 samples")
    parser.add_argument("--warm-up", type=int, default=2, help="steps that are not measured")
    parser.add_argument("--warmup-steps", type=int, help="of the learning rate; default: 300")
    parser.add_argument("--max-length", type=int, default=MAX_LENGTH, help="longer: left out")
    parser.add_argument("--reference", default="original", help="whose losses to compare with")
    parser.add_argument("--seconds", type=float, default=270, help="a side's time at most")
    parser.add_argument("--folder", type=Path, help="where sides' results are kept")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    return parser.parse_args()


def main() -> None:
    """Make the model, run the sides, print and keep the figures."""
    options = parse_arguments()
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = (options.folder or Path(temporary)).resolve()
        options.folder.mkdir(parents=True, exist_ok=True)
        options.model = (options.model or Path(temporary) / "nf4").resolve()
        if options.samples is None:
            device = "cpu" if options.device == "cpu" else None
            find_or_make(options.model, "nf4", options.shape, device)
        sides = copy.deepcopy(SIDES)
        apply_settings(sides, options.set, OURS)
        chosen = [name for name in options.sides.split(",") if name]
        unknown = [name for name in chosen if name not in sides]
        if unknown:
            sys.exit(f"no sides {', '.join(unknown)}; there are {', '.join(sides)}")
        for name in chosen:
            job = make_job(sides[name], name, options)
            run_side(Path(job["program"]), job, options.folder, name, options.seconds)
        report(list(sides), options)


if __name__ == "__main__":
    main()
