"""Generating answers, one prompt at a time, as the recipe does."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ja_instruct.devices import load_nf4_model, load_with_unsloth
from ja_instruct.pipelines.inference.parameters import InferenceParameters

if TYPE_CHECKING:
    from ja_instruct.models import ModelDirectory


@dataclass(frozen=True)
class Generated:
    """One answer.

    Attributes:
        text: The new tokens as text, without special tokens, stripped.
        prompt_tokens: Length of the prompt.
        new_tokens: Length of the answer, the end-of-sequence token included.
        finished: Whether the model ended the answer itself.
        seconds: Wall time.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    finished: bool
    seconds: float


def _load_with_unsloth(
    model: ModelDirectory, adapter: ModelDirectory | None, parameters: InferenceParameters
) -> tuple[Any, Any]:
    loaded, tokenizer = load_with_unsloth(model, parameters.max_seq_length)
    from peft import PeftModel
    from unsloth import FastLanguageModel

    if adapter is not None:
        loaded = PeftModel.from_pretrained(loaded, str(adapter.path))
    FastLanguageModel.for_inference(loaded)
    return loaded, tokenizer


def _load_with_transformers(
    model: ModelDirectory, adapter: ModelDirectory | None, parameters: InferenceParameters
) -> tuple[Any, Any]:
    loaded: Any = load_nf4_model(model, parameters.device)
    if adapter is not None:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(loaded, str(adapter.path))
        if parameters.device == "cpu":
            # the weights are float32 there: merging costs nothing and spares every step
            loaded = loaded.merge_and_unload()
    loaded.eval()
    return loaded, model.load_tokenizer()


LOADERS = {"unsloth": _load_with_unsloth, "transformers": _load_with_transformers}


def generate_answers(
    prompts: Sequence[str],
    model: ModelDirectory,
    adapter: ModelDirectory | None,
    parameters: InferenceParameters,
) -> Iterator[Generated]:
    """Yield an answer for every prompt, in order, by greedy decoding.

    Args:
        prompts: Whole prompts.
        model: The quantized model.
        adapter: The fine-tuned adapter; None asks the base model.
        parameters: Backend, device, length and decoding settings.
    """
    loaded, tokenizer = LOADERS[parameters.backend](model, adapter, parameters)
    import torch

    bad_words_ids = [
        tokenizer(word, add_special_tokens=False)["input_ids"] for word in parameters.bad_words
    ]
    for prompt in prompts:
        started = time.perf_counter()
        encoded = tokenizer(prompt, return_tensors="pt").to(loaded.device)
        length = encoded["input_ids"].shape[1]
        with torch.inference_mode():
            output = loaded.generate(
                **encoded,
                max_new_tokens=parameters.max_new_tokens,
                do_sample=False,
                use_cache=True,
                repetition_penalty=parameters.repetition_penalty,
                bad_words_ids=bad_words_ids or None,
            )
        new_ids = output[0, length:].tolist()
        yield Generated(
            text=tokenizer.decode(new_ids, skip_special_tokens=True).strip(),
            prompt_tokens=length,
            new_tokens=len(new_ids),
            finished=bool(new_ids) and new_ids[-1] == tokenizer.eos_token_id,
            seconds=time.perf_counter() - started,
        )
