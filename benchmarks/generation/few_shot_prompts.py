"""The recipe's prompts for tasks of a pool, with other pairs of it as shots, as ``prompts.jsonl``.

    python benchmarks/generation/few_shot_prompts.py --pool data/01_raw/demo/qa_pairs.jsonl \
        --out /tmp/prompts.jsonl

Real text for ``bench_generation.py --prompts`` where no run has written any: tasks and shots are
drawn, so none is the nearest, and long pairs are left out.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.generation.product import read_parameters
from ja_instruct.prompts import PromptParameters, few_shot_prompt

SEED = 0


def draw_prompts(
    pairs: list[dict[str, Any]], texts: PromptParameters, tasks: int, shots: int
) -> list[str]:
    """Return prompts, each with other shots; the same for the same pairs."""
    chance = random.Random(SEED)
    prompts = []
    for task in chance.sample(pairs, tasks):
        others = [pair for pair in pairs if pair is not task]
        prompts.append(few_shot_prompt(texts, task["input"], chance.sample(others, shots)))
    return prompts


def main() -> None:
    """Read a pool and write prompts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pool", type=Path, required=True, help="input and output, JSON Lines")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", type=int, default=64)
    parser.add_argument("--shots", type=int, default=6)
    parser.add_argument("--characters", type=int, default=300, help="a pair has fewer")
    options = parser.parse_args()
    with options.pool.open(encoding="utf-8", newline="\n") as file:
        pairs = [json.loads(line) for line in file]
    short = [pair for pair in pairs if len(pair["input"] + pair["output"]) < options.characters]
    if len(short) < max(options.tasks, options.shots + 1):
        parser.error(f"{options.pool} has {len(short)} pairs that are short enough: ask for fewer")
    _, texts = read_parameters("base", {"max_new_tokens": 64})
    lines = [
        json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n"
        for prompt in draw_prompts(short, texts, options.tasks, options.shots)
    ]
    options.out.write_text("".join(lines), "utf-8")


if __name__ == "__main__":
    main()
