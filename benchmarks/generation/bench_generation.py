r"""Answering tasks the contest's way and ours, on a model of Gemma 2 27B's shape: tokens a second.

    python benchmarks/generation/bench_generation.py --model /dev/shm/nf4 --folder /tmp/generation

``original`` is the notebook's loop (``reference.py``): unsloth, the adapter unmerged,
one prompt after the other; some tokens of some answers are timed, and the whole job's time follows
from the seconds that a token of a prompt and one of an answer take. ``ours`` is the product's
engine with ``conf/base``'s parameters on all tasks; ``ours-nf4`` the same with 4-bit weights,
``ours-24gb`` and ``ours-80gb`` with what cards of that size need, PyTorch given no more than there
would be; those ending in ``int8`` have keys and values in 8 bits; ``one-by-one`` is the product
without batching, for the record. ``warm-up`` and ``warm-up-nf4`` are some tokens of ours, in which
Triton compiles its kernels and keeps them; the original compiles in an answer that is not timed.
Each side has a process of its own, and all answer the first of the same prompts: random characters,
of ``--prompt-tokens`` more or less. No answer ends before ``--new-tokens`` (``endless_model.py``).

A rate counts new tokens, over reading prompts and generating. Loading stands apart, and so does
*preparing*, in which the product brings the weights into the form that steps are taken with.
*limit* is the time that the memory needs to deliver what the steps read at least, weights and keys
and values, as fast as it copies in the same process; *share* is that of the time the steps took. Of
the memory the table has PyTorch's most, what it held in reserve, and what NVML saw above the
beginning.

``--equal N`` counts how many of N short answers are the same as the product's one by one, and how
near the scores are where they part. The model and the adapter, random weights, are made unless they
are there.

``--sides`` says which to run; a folder keeps what was measured, and the table and the last line
hold all sides that it has. ``--set SIDE:NAME=VALUE`` changes a parameter of ours (below
``inference``), or any side's ``tasks``, ``new_tokens`` or ``memory_gb``. A side of a new name is
one of ours: ``--set ours-16:batching.max_num_seqs=16 --sides ours-16``.
With ``--device cpu`` transformers
takes unsloth's place:

    python benchmarks/generation/bench_generation.py --device cpu --environment demo --tasks 8 \
        --model data/06_models/demo/quantized_model --adapter data/06_models/demo/adapter \
        --prompts data/07_model_output/demo/prompts.jsonl --new-tokens 64
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.generation.figures import add_ratios, print_table, summarize
from benchmarks.harness.random_adapter import find_or_make_adapter
from benchmarks.harness.random_models import SHAPES, find_or_make
from benchmarks.harness.recording import record
from benchmarks.harness.sides import apply_settings, read_side, run_side
from benchmarks.training.bench_training import MEMORY_GB_OF_24, device_name
from benchmarks.training.samples import random_samples

SEED = 3407
#: Of ``--prompt-tokens``, the shortest and the longest prompt: 2,400 and 3,072 of 3,000.
SHORTEST, LONGEST = 0.8, 1.024
EQUAL = "equal"
EQUAL_PROMPT_TOKENS = 200
HERE = Path(__file__).parent
REFERENCE, PRODUCT = HERE / "reference.py", HERE / "product.py"
EQUALITY = HERE / "equality.py"

Side = dict[str, Any]
OURS: Side = {"tasks": None, "new_tokens": None, "memory_gb": None, "changes": {}}
#: More at a time than 32 rows, for which ours has another kernel than for fewer.
WARM_UP: Side = {**OURS, "tasks": 34, "new_tokens": 17}
INT8 = {"batching.kv_cache_dtype": "int8"}
SIDES: dict[str, Side] = {
    "original": {**OURS, "tasks": 1, "new_tokens": 128, "way": "unsloth"},
    "warm-up": WARM_UP,
    "warm-up-nf4": {**WARM_UP, "changes": {"batching.weights": "nf4", **INT8}},
    "ours": OURS,
    "ours-nf4": {**OURS, "changes": {"batching.weights": "nf4"}},
    "ours-80gb": {**OURS, "memory_gb": 80},
    "ours-24gb": {**OURS, "memory_gb": MEMORY_GB_OF_24, "tasks": 8},
    "ours-int8": {**OURS, "changes": INT8},
    "ours-80gb-int8": {**OURS, "memory_gb": 80, "changes": INT8},
    "ours-24gb-int8": {**OURS, "memory_gb": MEMORY_GB_OF_24, "tasks": 8, "changes": INT8},
    "one-by-one": {**OURS, "tasks": 1, "new_tokens": 128, "changes": {"engine": "one_by_one"}},
}
DEFAULT_SIDES = tuple(name for name in SIDES if name != "one-by-one")
#: What is compared with one by one. On a CPU there is one kind of weights.
ENGINES = {
    "cuda": {
        "nf4": {"batching.weights": "nf4"},
        "bf16": {"batching.weights": "bf16"},
        "nf4-int8": {"batching.weights": "nf4", **INT8},
    },
    "cpu": {"float32": {}, "float32-int8": INT8},
}


def draw_prompts(count: int, tokens: int) -> list[str]:
    """Return random prompts with some ``tokens`` each, BOS among them, by the random tokenizer."""
    chance = random.Random(SEED)
    shortest, longest = round(SHORTEST * tokens), round(LONGEST * tokens)
    lengths = [(chance.randint(shortest, longest), 1) for _ in range(count)]
    return [prompt for prompt, _ in random_samples(lengths, SEED)]


def read_prompts(path: Path, count: int) -> list[str]:
    """Return the first prompts that a run has written, from the beginning if there are too few."""
    with path.open(encoding="utf-8", newline="\n") as file:
        prompts = [json.loads(line)["prompt"] for line in file]
    return [prompts[number % len(prompts)] for number in range(count)]


def write_prompts(options: argparse.Namespace, name: str, count: int, tokens: int) -> str:
    """Write the prompts of sides and return where they are."""
    if options.prompts is None:
        prompts = draw_prompts(count, tokens)
    else:
        prompts = read_prompts(options.prompts, count)
    path: Path = options.folder / f"{name}.prompts.json"
    path.write_text(json.dumps(prompts, ensure_ascii=False), "utf-8")
    return str(path)


def make_job(side: Side, options: argparse.Namespace, prompts: str) -> dict[str, Any]:
    """Return what a side's process is to do."""
    job = {
        **side,
        "tasks": min(side["tasks"] or options.tasks, options.tasks),
        "new_tokens": min(side["new_tokens"] or options.new_tokens, options.new_tokens),
        "prompts": prompts,
    }
    if "way" in side:
        job["way"] = "transformers" if options.device == "cpu" else side["way"]
        job["tasks"] = options.original_tasks or job["tasks"]
        job["new_tokens"] = options.original_tokens or job["new_tokens"]
    return job | common_job(options)


def common_job(options: argparse.Namespace) -> dict[str, Any]:
    """Return what all processes are told."""
    return {
        "model": str(options.model),
        "adapter": str(options.adapter),
        "device": options.device,
        "environment": options.environment,
    }


def run_equality(options: argparse.Namespace) -> None:
    """Answer some prompts with several engines of the product."""
    job = {
        "prompts": write_prompts(options, EQUAL, options.equal, EQUAL_PROMPT_TOKENS),
        "new_tokens": options.equal_tokens,
        "engines": ENGINES[options.device],
        "memory_gb": None,
        **common_job(options),
    }
    run_side(EQUALITY, job, options.folder, EQUAL, options.seconds)


def report(known: list[str], options: argparse.Namespace) -> None:
    """Print what all calls have measured, and keep it as the benchmark's result."""
    results = {name: read_side(options.folder, name) for name in known}
    sides = {
        name: summarize(one, options.tasks, options.new_tokens)
        for name, one in results.items()
        if one
    }
    add_ratios(sides)
    print_table(sides)
    equality = read_side(options.folder, EQUAL) or {}
    for name, beside in equality.get("beside", {}).items():
        print(
            f"{name} beside one by one: {beside['equal_answers']} of {beside['answers']} answers "
            f"are equal, {beside['share_of_tokens_before_the_first_difference']:.1%} of the tokens "
            f"come before a difference; there the scores are apart by "
            f"{[one['bf16_steps'] for one in beside['margins']]} steps of bfloat16"
        )
    result = {
        "ratio": sides.get("ours", {}).get("ratio"),
        "device": device_name(),
        "model": options.shape if options.made else options.model.name,
        "tasks": options.tasks,
        "new_tokens": options.new_tokens,
        "sides": sides,
        EQUAL: equality,
    }
    if options.shape == "tiny":
        print(json.dumps(result))
    else:
        name = "generation" if options.device == "cuda" else "generation_cpu"
        record(name, result)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="NF4 directory; made unless it is there")
    parser.add_argument("--adapter", type=Path, help="made beside the model unless it is there")
    parser.add_argument("--shape", choices=list(SHAPES), default="gemma-2-27b")
    parser.add_argument("--prompts", type=Path, help="prompts.jsonl of a run; default: random")
    parser.add_argument("--sides", default=",".join(DEFAULT_SIDES))
    parser.add_argument("--set", action="append", default=[], metavar="SIDE:NAME=VALUE")
    parser.add_argument("--environment", default="base", help="whose parameters ours takes")
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--prompt-tokens", type=int, default=3000)
    parser.add_argument("--new-tokens", type=int, default=1024)
    parser.add_argument("--original-tasks", type=int, help="that the original answers; default: 1")
    parser.add_argument("--original-tokens", type=int, help="of its answers; default: 128")
    parser.add_argument("--equal", type=int, default=0, metavar="N", help="answers to compare")
    parser.add_argument("--equal-tokens", type=int, default=64, help="of each of those")
    parser.add_argument("--seconds", type=float, default=560, help="a side's time at most")
    parser.add_argument("--folder", type=Path, help="where sides' results are kept")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    return parser.parse_args()


def main() -> None:
    """Make model and adapter, run the sides, print and keep the figures."""
    options = parse_arguments()
    sides = copy.deepcopy(SIDES)
    apply_settings(sides, options.set, OURS)
    chosen = [name for name in options.sides.split(",") if name]
    unknown = [name for name in chosen if name not in sides]
    if unknown:
        sys.exit(f"no sides {', '.join(unknown)}; there are {', '.join(sides)}")
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = (options.folder or Path(temporary)).resolve()
        options.folder.mkdir(parents=True, exist_ok=True)
        options.model = (options.model or Path(temporary) / "nf4").resolve()
        beside = options.model.with_name(f"{options.model.name}-adapter")
        options.adapter = (options.adapter or beside).resolve()
        options.made = options.prompts is None
        device = "cpu" if options.device == "cpu" else None
        find_or_make(options.model, "nf4", options.shape, device)
        find_or_make_adapter(options.adapter, options.model, device)
        prompts = write_prompts(options, "all", options.tasks, options.prompt_tokens)
        for name in chosen:
            program = REFERENCE if "way" in sides[name] else PRODUCT
            job = make_job(sides[name], options, prompts)
            run_side(program, job, options.folder, name, options.seconds)
        if options.equal:
            run_equality(options)
        report(list(sides), options)


if __name__ == "__main__":
    main()
