"""Generation as the contest's notebook did it: one prompt after the other, the adapter unmerged.

``bench_generation.py`` starts it. unsloth loads the model; on a CPU, where it does not run,
transformers does, dequantized. A minimum length gives every answer the same number of tokens, and
each token is timed: the first of an answer includes the prefill of its prompt.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.memory import PeakMemory
from benchmarks.harness.random_models import load_nf4
from benchmarks.harness.sides import run_job, write_result

os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

MAX_SEQ_LENGTH = 4096
#: A test compares both with ``conf/base``.
REPETITION_PENALTY = 1.1
BAD_WORDS = ("質問", "###", "#", "##", "---", "<h3>", "filepath", "> ")
WARM_UP_TOKENS = 8


def load_with_unsloth(model: str, adapter: str) -> tuple[Any, Any]:
    """Return model with adapter, and tokenizer, in unsloth's inference mode."""
    from unsloth import FastLanguageModel

    base, tokenizer = FastLanguageModel.from_pretrained(
        model_name=model,
        max_seq_length=MAX_SEQ_LENGTH,
        dtype=None,
        load_in_4bit=True,
        local_files_only=True,
    )
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(base, adapter)
    FastLanguageModel.for_inference(adapted)
    return adapted, tokenizer


def load_with_transformers(model: str, adapter: str) -> tuple[Any, Any]:
    """Return model with adapter, and tokenizer; on a CPU in float32."""
    from peft import PeftModel

    base, tokenizer = load_nf4(model)
    return PeftModel.from_pretrained(base, adapter).eval(), tokenizer


WAYS = {"unsloth": load_with_unsloth, "transformers": load_with_transformers}


def make_token_clock() -> Any:
    """Return a stopping criterion that never stops and notes the time of each token."""
    import torch
    from transformers import StoppingCriteria

    class TokenClock(StoppingCriteria):
        def __init__(self) -> None:
            self.times: list[float] = []

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            if input_ids.is_cuda:
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    return TokenClock()


def answer(model: Any, tokenizer: Any, prompt: str, new_tokens: int) -> dict[str, Any]:
    """Answer a prompt with the recipe's arguments; return tokens and seconds."""
    import torch
    from transformers import StoppingCriteriaList

    clock = make_token_clock()
    started = time.perf_counter()
    encoded = tokenizer(prompt, return_tensors="pt").to(model.device)
    length = encoded["input_ids"].shape[1]
    with torch.inference_mode():
        output = model.generate(
            **encoded,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            use_cache=True,
            repetition_penalty=REPETITION_PENALTY,
            bad_words_ids=[tokenizer(w, add_special_tokens=False)["input_ids"] for w in BAD_WORDS],
            stopping_criteria=StoppingCriteriaList([clock]),
        )
    tokenizer.decode(output[0, length:], skip_special_tokens=True).strip()
    return {
        "prompt_tokens": length,
        "new_tokens": output.shape[1] - length,
        "prefill_seconds": clock.times[0] - started,
        "decode_seconds": time.perf_counter() - clock.times[0],
    }


def generate(job: dict[str, Any], path: Path) -> None:
    """Answer the job's prompts and write the figures to ``path`` after each answer."""
    if job["way"] == "unsloth":
        import unsloth  # noqa: F401  # before transformers, which it patches
    prompts = json.loads(Path(job["prompts"]).read_text("utf-8"))[: job["tasks"]]
    with PeakMemory() as memory:
        started = time.perf_counter()
        model, tokenizer = WAYS[job["way"]](job["model"], job["adapter"])
        load_seconds = round(time.perf_counter() - started, 1)
        result: dict[str, Any] = {"load_seconds": load_seconds, "answers": []}
        # the first call selects and compiles kernels
        answer(model, tokenizer, prompts[0], WARM_UP_TOKENS)
        for prompt in prompts:
            result["answers"].append(answer(model, tokenizer, prompt, job["new_tokens"]))
            result["memory"] = memory.figures()
            write_result(path, result)


if __name__ == "__main__":
    run_job(generate)
