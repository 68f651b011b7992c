"""How many answers of the product's engines equal those of one by one, and why others differ.

``bench_generation.py --equal N`` starts it. All engines answer the same prompts, one by one last.
Where answers differ, its model gives the scores of both tokens: a difference of a few bfloat16
steps is a matter of rounding.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import time
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.generation.product import EndlessModel, adapter_at, changes_of, read_parameters
from benchmarks.harness.sides import run_job, write_result
from ja_instruct.engine.backends import LOADERS, OneByOne, load_engine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ja_instruct.engine.backends import Backend

Answers = list[list[int]]
ONE_BY_ONE = {"engine": "one_by_one", "backend": "transformers"}
#: Stored bits of a bfloat16's significand.
BF16_BITS = 7


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Return the index of the first token that differs; None for equal answers."""
    if one == other:
        return None
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def compare_answers(ones: Answers, others: Answers) -> dict[str, Any]:
    """Return the shares of equal answers, and of tokens before the first difference."""
    places = [first_difference(one, other) for one, other in zip(ones, others, strict=True)]
    before = sum(
        len(one) if place is None else place for one, place in zip(ones, places, strict=True)
    )
    return {
        "answers": len(ones),
        "equal_answers": places.count(None),
        "share_of_equal_answers": round(places.count(None) / len(ones), 4),
        "share_of_tokens_before_the_first_difference": round(before / sum(map(len, ones)), 4),
        "first_differences": places,
    }


def find_margins(
    model: Any, prompts: Answers, ones: Answers, others: Answers, penalty: float
) -> list[dict[str, float]]:
    """Return how much higher a model scores its own token where another answer first differs.

    Args:
        model: The model that gave ``ones``.
        prompts: Token ids.
        ones: Its answers.
        others: The answers to compare with.
        penalty: The repetition penalty of both.

    Returns:
        For each difference the token's index, the margin, and the margin in steps of bfloat16.
    """
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    penalize = RepetitionPenaltyLogitsProcessor(penalty)
    margins = []
    for prompt, one, other in zip(prompts, ones, others, strict=True):
        place = first_difference(one, other)
        if place is None or place == min(len(one), len(other)):
            continue
        ids = torch.tensor([prompt + one[:place]], device=model.device)
        with torch.inference_mode():
            scores = penalize(ids, model(input_ids=ids).logits[:, -1].float())[0]
        best = float(scores[one[place]])
        margin = best - float(scores[other[place]])
        step = 2.0 ** (math.floor(math.log2(abs(best))) - BF16_BITS)
        row = {"token": place, "margin": round(margin, 4), "bf16_steps": round(margin / step, 2)}
        margins.append(row)
    return margins


def read_answers(engine: Backend, prompts: Sequence[str]) -> tuple[Answers, float]:
    """Return the tokens of each prompt's answer, and the seconds of all."""
    started = time.perf_counter()
    found = dict(engine.generate(prompts))
    seconds = time.perf_counter() - started
    return [[int(one) for one in found[i].text.split()] for i in range(len(prompts))], seconds


def answer_batched(job: dict[str, Any], changes: dict[str, Any]) -> tuple[Answers, float]:
    """Return the answers of one of the product's engines and its seconds, and free its memory."""
    import torch

    parameters, _ = read_parameters(job["environment"], changes_of({**job, "changes": changes}))
    prompts = json.loads(Path(job["prompts"]).read_text("utf-8"))
    model, adapter = EndlessModel.at(Path(job["model"])), adapter_at(Path(job["adapter"]))
    answers = read_answers(load_engine(model, adapter, parameters), prompts)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return answers


def compare(job: dict[str, Any], path: Path) -> None:
    """Answer the job's prompts with each of its engines and write how they differ to ``path``."""
    result: dict[str, Any] = {"seconds": {}, "compared_with_one_by_one": {}}
    others: dict[str, Answers] = {}
    for name, changes in job["engines"].items():
        others[name], result["seconds"][name] = answer_batched(job, changes)
        write_result(path, result)
    one_by_one = changes_of({**job, "changes": ONE_BY_ONE})
    parameters, _ = read_parameters(job["environment"], one_by_one)
    prompts = json.loads(Path(job["prompts"]).read_text("utf-8"))
    model, tokenizer = LOADERS["transformers"](
        EndlessModel.at(Path(job["model"])), adapter_at(Path(job["adapter"])), parameters
    )
    engine = OneByOne(model, tokenizer, parameters)
    ones, result["seconds"]["one-by-one"] = read_answers(engine, prompts)
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    for name, answers in others.items():
        margins = find_margins(model, ids, ones, answers, parameters.repetition_penalty)
        row = {**compare_answers(ones, answers), "margins": margins}
        result["compared_with_one_by_one"][name] = row
        write_result(path, result)


if __name__ == "__main__":
    run_job(compare)
