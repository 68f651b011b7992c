"""How many answers of the product's engines are those of one by one, token by token, and why not.

    python benchmarks/generation/equality.py JOB RESULT

is what ``bench_generation.py --equal N`` starts. All engines answer the same prompts, one by one
last, whose model then tells how far apart it saw the two tokens at which answers part: where that
is a few steps of bfloat16, rounding has decided.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import time
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.generation.endless_model import EndlessModel, adapter_at
from benchmarks.generation.product import changes_of, read_parameters
from benchmarks.harness.sides import write_result
from ja_instruct.engine.backends import LOADERS, OneByOne, load_engine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ja_instruct.engine.backends import Backend

Answers = list[list[int]]
ONE_BY_ONE = {"engine": "one_by_one", "backend": "transformers"}
#: Bits of a bfloat16's significand that are stored.
BF16_BITS = 7


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Return the index of the first token that differs; None for equal answers."""
    if one == other:
        return None
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def compare_answers(ones: Answers, others: Answers) -> dict[str, Any]:
    """Return the shares of equal answers, and of tokens that come before the first difference."""
    places = [first_difference(one, other) for one, other in zip(ones, others, strict=True)]
    before = sum(
        len(one) if place is None else place for one, place in zip(ones, places, strict=True)
    )
    equal = places.count(None)
    return {
        "answers": len(ones),
        "equal_answers": equal,
        "share_of_equal_answers": round(equal / len(ones), 4),
        "share_of_tokens_before_the_first_difference": round(before / sum(map(len, ones)), 4),
        "first_differences": places,
    }


def steps_of_bf16(value: float, difference: float) -> float:
    """Return a difference in units of what bfloat16 tells apart at a value.

    >>> steps_of_bf16(20.0, 0.25)
    2.0
    """
    return difference / 2.0 ** (math.floor(math.log2(abs(value))) - BF16_BITS)


def find_margins(
    model: Any, prompts: Answers, ones: Answers, others: Answers, penalty: float
) -> list[dict[str, float]]:
    """Return how much better a model thinks of its own token where another answer leaves it.

    Args:
        model: That gave ``ones``.
        prompts: Token ids.
        ones: Its answers.
        others: Those that they are compared with.
        penalty: For tokens of prompt and answer so far, as both answers had it.
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
        steps = steps_of_bf16(best, margin)
        margins.append({"token": place, "margin": round(margin, 4), "bf16_steps": round(steps, 2)})
    return margins


def read_answers(engine: Backend, prompts: Sequence[str]) -> tuple[Answers, float]:
    """Return the tokens of each prompt's answer, and the seconds of all."""
    started = time.perf_counter()
    found = dict(engine.generate(prompts))
    seconds = time.perf_counter() - started
    return [[int(one) for one in found[i].text.split()] for i in range(len(prompts))], seconds


def answer_batched(job: dict[str, Any], changes: dict[str, Any]) -> tuple[Answers, float]:
    """Return what an engine of the product answers, and its seconds; its memory is free again."""
    import torch

    parameters, texts = read_parameters(job["environment"], changes_of({**job, "changes": changes}))
    prompts = json.loads(Path(job["prompts"]).read_text("utf-8"))
    model = EndlessModel.at(Path(job["model"]))
    answers = read_answers(
        load_engine(
            model,
            adapter_at(Path(job["adapter"])),
            parameters,
            stop_at_end_of_turn=texts.format == "chat_template",
        ),
        prompts,
    )
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return answers


def compare(job: dict[str, Any], path: Path) -> None:
    """Answer the job's prompts by all its engines and write how they differ to ``path``."""
    result: dict[str, Any] = {"seconds": {}, "beside": {}}
    others: dict[str, Answers] = {}
    for name, changes in job["engines"].items():
        others[name], result["seconds"][name] = answer_batched(job, changes)
        write_result(path, result)
    parameters, texts = read_parameters(
        job["environment"], changes_of({**job, "changes": ONE_BY_ONE})
    )
    prompts = json.loads(Path(job["prompts"]).read_text("utf-8"))
    model, tokenizer = LOADERS["transformers"](
        EndlessModel.at(Path(job["model"])), adapter_at(Path(job["adapter"])), parameters
    )
    engine = OneByOne(
        model, tokenizer, parameters, stop_at_end_of_turn=texts.format == "chat_template"
    )
    ones, result["seconds"]["one-by-one"] = read_answers(engine, prompts)
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    for name, answers in others.items():
        margins = find_margins(model, ids, ones, answers, parameters.repetition_penalty)
        result["beside"][name] = {**compare_answers(ones, answers), "margins": margins}
        write_result(path, result)


def main() -> None:
    """Do one job."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("job", type=Path)
    parser.add_argument("result", type=Path)
    options = parser.parse_args()
    compare(json.loads(options.job.read_text("utf-8")), options.result)


if __name__ == "__main__":
    main()
