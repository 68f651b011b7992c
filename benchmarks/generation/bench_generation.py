r"""Answering tasks the contest's way and ours, on a model of Gemma 2 27B's shape: tokens a second.

    python benchmarks/generation/bench_generation.py --model /dev/shm/nf4 --folder /tmp/generation
    python benchmarks/generation/bench_generation.py --device cpu --environment demo --tasks 8 \
        --model data/06_models/demo/quantized_model --adapter data/06_models/demo/adapter \
        --prompts data/07_model_output/demo/prompts.jsonl --new-tokens 64

``original`` is the notebook's loop (``reference.py``): unsloth, on a CPU transformers, the adapter
unmerged, one prompt after the other; some answers are timed token by token, and the whole job is
extrapolated. ``ours`` is the product's engine with ``conf/base``'s parameters on all tasks;
``ours-nf4`` the same with 4-bit weights; ``ours-24gb`` and ``ours-80gb`` in the memory of such
cards; names in ``int8`` have an int8 KV cache; ``one-by-one`` is the product without batching. The
warm-ups only let Triton compile and store its kernels; the original compiles in an answer that is
not timed. All sides answer the first of the same prompts, and every answer has ``--new-tokens``
tokens. Model and adapter, random weights, are created if they are missing.

*tokens/s* counts new tokens over prefill and decoding, without loading and *prepare*, in which the
product converts weights. ``--equal N`` counts how many of N short answers, with each kind of
weights and KV cache, equal those of one by one. ``--set SIDE:NAME=VALUE`` changes a parameter of
ours (below ``inference``), or a side's ``tasks``, ``new_tokens`` or ``memory_gb``. A side with a
new name starts as ``ours``: ``--set ours-16:batching.max_num_seqs=16 --sides ours-16``.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.generation.figures import COLUMNS, add_ratios, compare_answers, summarize
from benchmarks.harness.random_models import (
    SHAPES,
    find_or_make,
    find_or_make_adapter,
    random_samples,
)
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
from benchmarks.training.bench_training import MEMORY_GB_OF_24

if TYPE_CHECKING:
    import argparse

SEED = 3407
#: The shortest and the longest prompt over ``--prompt-tokens``: 2,400 and 3,072 of 3,000.
SHORTEST, LONGEST = 0.8, 1.024
EQUAL_PROMPT_TOKENS = 200
HERE = Path(__file__).parent

OURS: Side = {"tasks": None, "new_tokens": None, "memory_gb": None, "changes": {}}
#: More than 32 sequences have another kernel than fewer.
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
#: Compared with one by one. A CPU has one kind of weights.
ENGINES = {
    "cuda": {
        "nf4": {"batching.weights": "nf4"},
        "bf16": {"batching.weights": "bf16"},
        "nf4-int8": {"batching.weights": "nf4", **INT8},
    },
    "cpu": {"float32": {}, "float32-int8": INT8},
}
ONE_BY_ONE = {"engine": "one_by_one", "backend": "transformers"}


def draw_prompts(count: int, tokens: int) -> list[str]:
    """Return random prompts of about ``tokens`` tokens, BOS included."""
    generator = random.Random(SEED)
    shortest, longest = round(SHORTEST * tokens), round(LONGEST * tokens)
    lengths = [(generator.randint(shortest, longest), 1) for _ in range(count)]
    return [prompt for prompt, _ in random_samples(lengths, SEED)]


def write_prompts(options: argparse.Namespace, name: str, count: int, tokens: int) -> str:
    """Write random prompts, or those of ``--prompts`` in turn, and return their path."""
    if options.prompts is None:
        prompts = draw_prompts(count, tokens)
    else:
        with options.prompts.open(encoding="utf-8", newline="\n") as file:
            given = [json.loads(line)["prompt"] for line in file]
        prompts = [given[number % len(given)] for number in range(count)]
    path: Path = options.folder / f"{name}.prompts.json"
    path.write_text(json.dumps(prompts, ensure_ascii=False), "utf-8")
    return str(path)


def make_job(side: Side, options: argparse.Namespace, prompts: str) -> dict[str, Any]:
    """Return the job of a side's process."""
    job = {
        **side,
        "tasks": min(side["tasks"] or options.tasks, options.tasks),
        "new_tokens": min(side["new_tokens"] or options.new_tokens, options.new_tokens),
        "prompts": prompts,
        "model": str(options.model),
        "adapter": str(options.adapter),
        "device": options.device,
        "environment": options.environment,
        "keep_text": False,
    }
    if "way" in side:
        job["way"] = "transformers" if options.device == "cpu" else side["way"]
    return job


def run_equality(options: argparse.Namespace) -> None:
    """Answer some short prompts with each engine."""
    prompts = write_prompts(options, "equal", options.equal, EQUAL_PROMPT_TOKENS)
    engines = {**ENGINES[options.device], "one-by-one": ONE_BY_ONE}
    for name, changes in engines.items():
        job = make_job({**OURS, "changes": changes}, options, prompts)
        job |= {"tasks": options.equal, "new_tokens": options.equal_tokens, "keep_text": True}
        run_side(HERE / "product.py", job, options.folder, f"equal-{name}", options.seconds)


def compare_engines(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return how many answers of each engine equal those of one by one."""
    names = [f"equal-{name}" for name in (*ENGINES[options.device], "one-by-one")]
    answers = {
        name: [
            one["text"].split()
            for one in sorted(result.get("answers", []), key=lambda one: one["position"])
        ]
        for name, result in read_sides(options.folder, names).items()
        if result["status"] == "done"
    }
    ones = answers.pop("equal-one-by-one", None)
    return {name: compare_answers(ones, others) for name, others in answers.items()} if ones else {}


def report(known: dict[str, Side], options: argparse.Namespace) -> None:
    """Print the figures of all calls, and keep them as the benchmark's result."""
    results = read_sides(options.folder, known)
    sides = {
        name: summarize(one, options.tasks, options.new_tokens) for name, one in results.items()
    }
    add_ratios(sides)
    print_table(sides, COLUMNS)
    equal = compare_engines(options)
    if equal:
        columns = ("answers", "equal_answers", "share_of_tokens_before_a_difference")
        print_table(equal, {column: column for column in columns}, "against one by one")
    result = {
        "ratio": sides.get("ours", {}).get("ratio"),
        "device": device_name(),
        "model": options.shape if options.prompts is None else options.model.name,
        "tasks": options.tasks,
        "new_tokens": options.new_tokens,
        "sides": sides,
        "compared_with_one_by_one": equal,
    }
    name = "generation" if options.device == "cuda" else "generation_cpu"
    record(name, result, keep=options.shape != "tiny")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    default = [name for name in SIDES if name != "one-by-one"]
    parser = make_parser(__doc__, SHAPES, default, seconds=560)
    parser.add_argument("--adapter", type=Path, help="default: beside the model; made if missing")
    parser.add_argument("--prompts", type=Path, help="prompts.jsonl of a run; default: random")
    parser.add_argument("--environment", default="base", help="source of our parameters")
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--prompt-tokens", type=int, default=3000)
    parser.add_argument("--new-tokens", type=int, default=1024)
    parser.add_argument("--equal", type=int, default=0, metavar="N", help="answers to compare")
    parser.add_argument("--equal-tokens", type=int, default=64, help="tokens of each of those")
    return parser.parse_args()


def main() -> None:
    """Make model and adapter, run the sides, print and keep the figures."""
    options = parse_arguments()
    sides = apply_settings(SIDES, options.set, OURS)
    with working_folder(options) as folder:
        beside = options.model.with_name(f"{options.model.name}-adapter")
        options.adapter = (options.adapter or beside).resolve()
        find_or_make(options.model, "nf4", options.shape, options.device)
        find_or_make_adapter(options.adapter, options.model)
        prompts = write_prompts(options, "all", options.tasks, options.prompt_tokens)
        for name in choose(options.sides, sides):
            program = HERE / ("reference.py" if "way" in sides[name] else "product.py")
            job = make_job(sides[name], options, prompts)
            run_side(program, job, folder, name, options.seconds)
        if options.equal:
            run_equality(options)
        report(sides, options)


if __name__ == "__main__":
    main()
