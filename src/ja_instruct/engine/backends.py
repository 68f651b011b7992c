"""Load an engine; and the recipe's engine, which calls ``generate`` for one prompt at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ja_instruct.engine.answer import PROMPT_ERRORS, Answer, AnswerDecoder
from ja_instruct.engine.batched import Batched
from ja_instruct.engine.parameters import EngineParameters
from ja_instruct.engine.vllm import VllmEngine
from ja_instruct.models.directory import (
    ModelDirectory,
    check_json_files,
    require_model_files,
)
from ja_instruct.models.json_files import as_ids, read_provenance
from ja_instruct.models.loading import load_nf4_model, load_with_unsloth

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_REMEDY = "give the directory of a quantized model"


class Backend(Protocol):
    """An engine: turns prompts into answers, in any number of calls."""

    def generate(self, prompts: Sequence[str]) -> Iterator[tuple[int, Answer]]:
        """Yield each prompt's position and answer once, as answers end, in any order.

        A prompt that cannot be answered yields an ``Answer`` with its ``error`` and does not stop
        the others.
        """


def _load_with_unsloth(
    model: ModelDirectory, adapter: ModelDirectory | None, parameters: EngineParameters
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    loaded: Any
    loaded, tokenizer = load_with_unsloth(model, parameters.max_seq_length)
    from unsloth import FastLanguageModel

    if adapter is not None:
        loaded = adapter.load_adapter(loaded)
    FastLanguageModel.for_inference(loaded)
    return loaded, tokenizer


def _load_with_transformers(
    model: ModelDirectory, adapter: ModelDirectory | None, parameters: EngineParameters
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    loaded: Any = load_nf4_model(model, parameters.device)
    if adapter is not None:
        loaded = adapter.load_adapter(loaded)
        if parameters.device == "cpu":
            # the weights are float32 there: merging is free and makes every step faster
            loaded = loaded.merge_and_unload()
    loaded.eval()
    return loaded, model.load_tokenizer()


LOADERS = {"unsloth": _load_with_unsloth, "transformers": _load_with_transformers}


class OneByOne:
    """The recipe's engine: greedy decoding of one prompt after the other, in order."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        parameters: EngineParameters,
        *,
        stop_at_end_of_turn: bool = False,
    ) -> None:
        """Use a loaded model; see ``load_engine``."""
        self._model: Any = model
        self._tokenizer = tokenizer
        self._parameters = parameters
        self._own_ends = as_ids(self._model.generation_config.eos_token_id)
        self._decoder = AnswerDecoder.of(
            tokenizer, parameters, self._own_ends, stop_at_end_of_turn=stop_at_end_of_turn
        )

    def generate(self, prompts: Sequence[str]) -> Iterator[tuple[int, Answer]]:
        """Yield position and answer, in order; see ``Backend``."""
        encoded = self._decoder.control.encode(prompts)
        yield from self._decoder.decode_timed(self._answer(encoded), encoded)

    def _answer(self, encoded: Sequence[list[int]]) -> Iterator[tuple[int, list[int] | Exception]]:
        result: list[int] | Exception
        for position, ids in enumerate(encoded):
            try:
                result = self._generate(ids)
            except PROMPT_ERRORS as error:
                logger.exception("generating the answer of prompt %d failed", position)
                result = error.with_traceback(None)
            yield position, result

    def _generate(self, prompt_ids: list[int]) -> list[int]:
        import torch

        with torch.inference_mode():
            input_ids = torch.tensor([prompt_ids], device=self._model.device)
            output = self._model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=self._parameters.max_new_tokens,
                do_sample=False,
                use_cache=True,
                bad_words_ids=self._decoder.bad_words_ids or None,
                **self._settings(len(prompt_ids)),
            )
        new_ids: list[int] = output[0, len(prompt_ids) :].tolist()
        return new_ids

    def _settings(self, prompt_tokens: int) -> dict[str, Any]:
        """Return the arguments of ``generate`` that depend on the parameters."""
        from ja_instruct.engine.banned_words import BannedText, SparingPenalty

        parameters = self._parameters
        settings: dict[str, Any] = {"repetition_penalty": parameters.repetition_penalty}
        processors: list[Any] = []
        if parameters.penalty_on == "answer" or parameters.penalty_spares_end:
            settings["repetition_penalty"] = 1.0
            ignored = prompt_tokens if parameters.penalty_on == "answer" else 0
            spared = self._decoder.stop_ids if parameters.penalty_spares_end else ()
            processors.append(SparingPenalty(parameters.repetition_penalty, ignored, spared))
        if parameters.bad_words and parameters.bad_words_in == "text":
            processors.append(BannedText(self._tokenizer, parameters.bad_words, prompt_tokens))
        if processors:
            settings["logits_processor"] = processors
        if set(self._decoder.stop_ids) != set(self._own_ends):
            settings["eos_token_id"] = list(self._decoder.stop_ids)
        return settings


def load_engine(
    model: ModelDirectory | Path | str,
    adapter: ModelDirectory | Path | str | None = None,
    parameters: EngineParameters | None = None,
    *,
    stop_at_end_of_turn: bool = False,
    weights_before: str = "",
) -> Backend:
    """Load a model and an adapter, and return the engine that answers with them.

    Args:
        model: The NF4 model, as a directory with ``config.json``, safetensors and tokenizer.
        adapter: The LoRA adapter; None for the base model.
        parameters: Backend, device, lengths and decoding; None for the defaults.
        stop_at_end_of_turn: Whether the chat template's end of turn ends an answer, like EOS.
        weights_before: The kind of weights of an earlier run's answers, which
            ``batching.weights: auto`` then keeps.

    Raises:
        InputError: A directory is not a model's, the backend is not installed or does not support
            the adapter, or the tokenizer lacks the chat template that gives the end of turn.
    """
    if not isinstance(model, ModelDirectory):
        require_model_files(Path(model), _REMEDY)
        check_json_files(Path(model), _REMEDY)
    model = _directory_of(model)
    adapter = None if adapter is None else _directory_of(adapter)
    parameters = parameters or EngineParameters()
    if parameters.backend == "vllm":
        return VllmEngine(model, adapter, parameters, stop_at_end_of_turn=stop_at_end_of_turn)
    load = LOADERS[parameters.backend]
    if parameters.engine == "one_by_one":
        loaded, tokenizer = load(model, adapter, parameters)
        return OneByOne(loaded, tokenizer, parameters, stop_at_end_of_turn=stop_at_end_of_turn)
    # On CUDA the free memory decides how Batched applies the adapter.
    is_applied = parameters.device == "cpu"
    loaded, tokenizer = load(model, adapter if is_applied else None, parameters)
    return Batched(
        loaded,
        tokenizer,
        parameters,
        adapter=None if is_applied else adapter,
        stop_at_end_of_turn=stop_at_end_of_turn,
        weights_before=weights_before,
    )


def _directory_of(model: ModelDirectory | Path | str) -> ModelDirectory:
    if isinstance(model, ModelDirectory):
        return model
    path = Path(model)
    return ModelDirectory(path, path.name, provenance=read_provenance(path))
