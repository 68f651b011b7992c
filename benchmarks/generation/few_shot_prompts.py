r"""Write the recipe's prompts for tasks of a pool, with other pairs as examples: ``prompts.jsonl``.

    python benchmarks/generation/few_shot_prompts.py --pool data/01_raw/demo/qa_pairs.jsonl \
        --out /tmp/prompts.jsonl

Real text for ``bench_generation.py --prompts`` if no run has written any. Tasks and examples are
drawn at random, without retrieval, from pairs shorter than ``--characters``.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.generation.product import read_parameters
from ja_instruct.prompts import few_shot_prompt


def main() -> None:
    """Read a pool and write prompts, the same for the same pool."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pool", type=Path, required=True, help="input and output, JSON Lines")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", type=int, default=64)
    parser.add_argument("--examples", type=int, default=6)
    parser.add_argument("--characters", type=int, default=300, help="maximum length of a pair")
    options = parser.parse_args()
    with options.pool.open(encoding="utf-8", newline="\n") as file:
        pairs = [json.loads(line) for line in file]
    short = [pair for pair in pairs if len(pair["input"] + pair["output"]) < options.characters]
    if len(short) < max(options.tasks, options.examples + 1):
        parser.error(f"{options.pool} has {len(short)} pairs that are short enough: ask for fewer")
    _, texts = read_parameters("base", {"max_new_tokens": 64})
    generator = random.Random(0)
    with options.out.open("w", encoding="utf-8", newline="\n") as file:
        for task in generator.sample(short, options.tasks):
            others = [pair for pair in short if pair is not task]
            examples = generator.sample(others, options.examples)
            prompt = few_shot_prompt(texts, task["input"], examples)
            file.write(json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
