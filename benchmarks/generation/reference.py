"""Generation as the contest's notebook did it: one prompt after the other, the adapter unmerged.

    python benchmarks/generation/reference.py JOB RESULT

is what ``bench_generation.py`` starts. The model is loaded by unsloth; on a CPU, where it does not
run, by transformers, dequantized. So that every answer has as many tokens as wanted, no shorter one
is allowed, and each token is timed: the first of an answer takes the reading of its prompt.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

MAX_SEQ_LENGTH = 4096
#: ``conf/base`` has the same; a test holds them equal.
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
    """Return model with adapter, and tokenizer; on a CPU computed in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cuda = torch.cuda.is_available()
    base: Any = AutoModelForCausalLM.from_pretrained(
        model,
        device_map={"": 0} if cuda else "cpu",
        dtype=torch.bfloat16 if cuda else torch.float32,
        local_files_only=True,
    )
    if not cuda:
        # bitsandbytes' 4-bit kernels are many times slower there than plain ones
        base = base.dequantize().float()
        base.is_loaded_in_4bit = False
    adapted = PeftModel.from_pretrained(base, adapter).eval()
    return adapted, AutoTokenizer.from_pretrained(model, local_files_only=True)


WAYS = {"unsloth": load_with_unsloth, "transformers": load_with_transformers}


def make_token_clock() -> Any:
    """Return what ``generate`` asks after each token whether to stop; it notes when that was."""
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


def main() -> None:
    """Do one job."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("job", type=Path)
    parser.add_argument("result", type=Path)
    options = parser.parse_args()
    job = json.loads(options.job.read_text("utf-8"))
    if job["way"] == "unsloth":
        import unsloth  # noqa: F401  # before transformers, which it patches
    from benchmarks.harness.peak_memory import PeakMemory
    from benchmarks.harness.sides import write_result

    prompts = json.loads(Path(job["prompts"]).read_text("utf-8"))[: job["tasks"]]
    with PeakMemory() as memory:
        started = time.perf_counter()
        model, tokenizer = WAYS[job["way"]](job["model"], job["adapter"])
        result: dict[str, Any] = {
            "load_seconds": round(time.perf_counter() - started, 1),
            "answers": [],
        }
        # kernels are chosen and compiled at the first call
        answer(model, tokenizer, prompts[0], WARM_UP_TOKENS)
        for prompt in prompts:
            result["answers"].append(answer(model, tokenizer, prompt, job["new_tokens"]))
            result["memory"] = memory.figures()
            write_result(options.result, result)


if __name__ == "__main__":
    main()
