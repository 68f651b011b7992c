"""Generating answers: what an engine is, and the recipe's, which asks for one prompt at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ja_instruct.engine.answer import (
    PROMPT_ERRORS,
    Answer,
    AnswerDecoder,
    failed_answer,
)
from ja_instruct.engine.batched import Batched
from ja_instruct.engine.parameters import EngineParameters
from ja_instruct.engine.vllm import VllmEngine
from ja_instruct.models.loading import load_nf4_model, load_with_unsloth
from ja_instruct.prompts import PromptParameters

if TYPE_CHECKING:
    from ja_instruct.models.directory import ModelDirectory

logger = logging.getLogger(__name__)


class Backend(Protocol):
    """What turns prompts into answers; one engine serves any number of calls."""

    def generate(self, prompts: Sequence[str]) -> Iterator[tuple[int, Answer]]:
        """Yield every prompt's position and answer once, as it is finished, in any order.

        A prompt that cannot be answered yields a ``Answer`` with its ``error`` and does not stop
        the others.
        """


def _load_with_unsloth(
    model: ModelDirectory, adapter: ModelDirectory | None, parameters: EngineParameters
) -> tuple[Any, Any]:
    loaded, tokenizer = load_with_unsloth(model, parameters.max_seq_length)
    from peft import PeftModel
    from unsloth import FastLanguageModel

    if adapter is not None:
        loaded = PeftModel.from_pretrained(loaded, str(adapter.path))
    FastLanguageModel.for_inference(loaded)
    return loaded, tokenizer


def _load_with_transformers(
    model: ModelDirectory, adapter: ModelDirectory | None, parameters: EngineParameters
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


class OneByOne:
    """The recipe's engine: greedy decoding of one prompt after the other, in order."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        parameters: EngineParameters,
        prompts: PromptParameters,
    ) -> None:
        """Take a loaded model; ``prompts`` tells which turns end."""
        self._model = model
        self._tokenizer = tokenizer
        self._parameters = parameters
        self._form = AnswerDecoder.of(tokenizer, parameters, prompts)

    def generate(self, prompts: Sequence[str]) -> Iterator[tuple[int, Answer]]:
        """Yield position and answer, in order; see ``Backend``."""
        for position, prompt in enumerate(prompts):
            started = time.perf_counter()
            try:
                answer = self._answer(prompt)
            except PROMPT_ERRORS as error:
                logger.exception("generating the answer of prompt %d failed", position)
                answer = failed_answer(error, time.perf_counter() - started)
            yield position, answer

    def _answer(self, prompt: str) -> Answer:
        import torch

        started = time.perf_counter()
        encoded = self._tokenizer(prompt, return_tensors="pt").to(self._model.device)
        length = encoded["input_ids"].shape[1]
        with torch.inference_mode():
            output = self._model.generate(
                **encoded,
                max_new_tokens=self._parameters.max_new_tokens,
                do_sample=False,
                use_cache=True,
                bad_words_ids=self._form.bad_words_ids or None,
                **self._settings(length),
            )
        seconds = time.perf_counter() - started
        return self._form.answer(output[0, length:].tolist(), length, seconds)

    def _settings(self, prompt_tokens: int) -> dict[str, Any]:
        """Return what ``generate`` gets beyond the recipe's own arguments."""
        from ja_instruct.engine.banned_words import BannedText, SparingPenalty

        parameters = self._parameters
        settings: dict[str, Any] = {"repetition_penalty": parameters.repetition_penalty}
        processors: list[Any] = []
        if parameters.penalty_on == "answer" or parameters.penalty_spares_end:
            settings["repetition_penalty"] = 1.0
            ignored = prompt_tokens if parameters.penalty_on == "answer" else 0
            spared = self._form.ends if parameters.penalty_spares_end else ()
            processors.append(SparingPenalty(parameters.repetition_penalty, ignored, spared))
        if parameters.bad_words and parameters.bad_words_in == "text":
            processors.append(BannedText(self._tokenizer, parameters.bad_words, prompt_tokens))
        if processors:
            settings["logits_processor"] = processors
        if self._form.stops_at_turn:
            settings["eos_token_id"] = list(self._form.ends)
        return settings


def load_engine(
    model: ModelDirectory,
    adapter: ModelDirectory | None,
    parameters: EngineParameters,
    prompts: PromptParameters,
    weights_before: str = "",
) -> Backend:
    """Load model and adapter, and return what answers with them.

    Args:
        model: The quantized model.
        adapter: The fine-tuned adapter; None asks the base model.
        parameters: Engine, backend, device, length and decoding settings.
        prompts: Their format; that of a chat has turns that end.
        weights_before: Those of answers that are kept from an earlier run; ``auto`` keeps to them.

    Raises:
        InputError: The backend is not installed, or cannot use the adapter.
    """
    if parameters.backend == "vllm":
        return VllmEngine(model, adapter, parameters, prompts)
    load = LOADERS[parameters.backend]
    if parameters.engine == "one_by_one":
        return OneByOne(*load(model, adapter, parameters), parameters, prompts)
    if parameters.device == "cpu":
        return Batched(*load(model, adapter, parameters), parameters, prompts)
    # how the adapter is taken up depends on the memory that the prompts leave
    loaded, tokenizer = load(model, None, parameters)
    return Batched(
        loaded, tokenizer, parameters, prompts, adapter=adapter, weights_before=weights_before
    )
