"""The engine that leaves answering to vLLM: continuous batching with a paged cache."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ja_instruct.engine.answer import (
    PROMPT_ERRORS,
    Answer,
    AnswerDecoder,
    failed_answer,
)
from ja_instruct.engine.batch_size import PREFILL_TOKENS, USABLE_SHARE
from ja_instruct.engine.parameters import EngineParameters
from ja_instruct.errors import InputError
from ja_instruct.memory.estimates import CONTEXT_BYTES
from ja_instruct.models.loading import free_gpu_memory
from ja_instruct.prompts import PromptParameters

if TYPE_CHECKING:
    from ja_instruct.models.directory import ModelDirectory

logger = logging.getLogger(__name__)

PACKAGES = ("vllm", "vllm_bnb_plugin")
# vllm.config.lora.MaxLoRARanks, but for 1
MAX_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# vLLM holds what it knows of the vocabulary for each of them, a MB for Gemma's, used or not
MAX_SEQUENCES = 256
# How vLLM names the ends of an answer that is one
ANSWERED = ("stop", "length")


def require_vllm() -> None:
    """Raise ``InputError`` unless vLLM and its plugin for 4-bit weights are installed."""
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise InputError(
            f"inference.backend 'vllm': {' and '.join(map(repr, missing))} not installed; "
            f"pip install 'ja-instruct[vllm]' (in an environment of its own, without "
            f"-c requirements.txt: vLLM wants other versions), or set backend: transformers"
        )


class VllmEngine:
    """Answers with vLLM, greedily: NF4 weights by bitsandbytes, the adapter as vLLM's LoRA.

    It is written against the sources of vllm 0.32.0 and vllm-bnb-plugin 0.0.3 and has not been run
    on a GPU by this project. Answers can differ from those of the other engines by rounding, and
    where a bad word's spelling behind a blank has as many tokens as the word: vLLM bans that, too.
    """

    def __init__(
        self,
        model: ModelDirectory,
        adapter: ModelDirectory | None,
        parameters: EngineParameters,
        prompts: PromptParameters,
    ) -> None:
        """Take the model's files; vLLM loads them when it is told the prompts.

        Args:
            model: The quantized model.
            adapter: The fine-tuned adapter; None asks the base model.
            parameters: How to decode, and how much memory to take.
            prompts: Their format; that of a chat has turns that end.

        Raises:
            InputError: vLLM is not installed, or the adapter's rank is above what it takes.
        """
        require_vllm()
        self._model = model
        self._adapter = adapter
        self._parameters = parameters
        self._tokenizer = model.load_tokenizer()
        self._form = AnswerDecoder.of(self._tokenizer, parameters, prompts)
        self._adapter_arguments = _adapter_arguments(adapter)

    def generate(self, prompts: Sequence[str]) -> Iterator[tuple[int, Answer]]:
        """Yield position and answer as answers end; see ``Backend``.

        vLLM starts here, since only the prompts tell how long sequences get, and ends with the last
        answer, which gives its memory back.

        Raises:
            Exception: Whatever vLLM raises when it cannot start or its process dies. That is of no
                single prompt; what was answered before has been yielded.
        """
        encoded = [self._tokenizer(prompt)["input_ids"] for prompt in prompts]
        if not encoded:
            return
        free_gpu_memory()
        from vllm import LLM

        engine = LLM(**self._arguments(encoded)).llm_engine
        try:
            before = time.perf_counter()
            for position, found in self._answer(engine, encoded):
                now = time.perf_counter()
                seconds, before = now - before, now
                if isinstance(found, Exception):
                    yield position, failed_answer(found, seconds)
                else:
                    yield position, self._form.answer(found, len(encoded[position]), seconds)
        finally:
            # it has the GPU's memory, in a process of its own
            engine.engine_core.shutdown()

    def _answer(
        self, engine: Any, encoded: Sequence[list[int]]
    ) -> Iterator[tuple[int, list[int] | Exception]]:
        """Yield the position of each prompt with its answer's ids, or with why it has none.

        ``LLM.generate`` would return all answers at the end: a killed run would have none.
        """
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import tokens_input

        settings, adapter = self._sampling(), self._adapter_request()
        for position, ids in enumerate(encoded):
            try:
                engine.add_request(str(position), tokens_input(ids), settings, lora_request=adapter)
            except (*PROMPT_ERRORS, VLLMClientError) as error:
                logger.exception("vLLM does not take prompt %d", position)
                yield position, error.with_traceback(None)
        while engine.has_unfinished_requests():
            for output in engine.step():
                if not output.finished:
                    continue
                (answer,) = output.outputs
                if answer.finish_reason in ANSWERED:
                    yield int(output.request_id), list(answer.token_ids)
                else:
                    why = f"vLLM ended the answer with '{answer.finish_reason}'"
                    yield int(output.request_id), RuntimeError(why)

    def _sampling(self) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = self._parameters
        return SamplingParams(
            temperature=0.0,
            # falls on prompt and answer
            repetition_penalty=parameters.repetition_penalty,
            max_tokens=parameters.max_new_tokens,
            # beside those in the model's generation_config.json
            stop_token_ids=list(self._form.ends),
            bad_words=list(parameters.bad_words),
            # the text is made of the ids, as in every engine
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _adapter_request(self) -> Any:
        if self._adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest("adapter", 1, str(self._adapter.path))

    def _arguments(self, encoded: Sequence[list[int]]) -> dict[str, Any]:
        """Return what vLLM starts with to answer these prompts."""
        batching = self._parameters.batching
        sequences = min(len(encoded), batching.max_num_seqs or MAX_SEQUENCES)
        prefill = batching.prefill_chunk_size or PREFILL_TOKENS[-1]
        return {
            "model": str(self._model.path),
            "quantization": "bitsandbytes",
            "load_format": "bitsandbytes",
            "dtype": "bfloat16",
            "max_model_len": self._length(encoded),
            "max_num_seqs": sequences,
            "enable_chunked_prefill": True,
            # of a step: a token of every answer counts as well
            "max_num_batched_tokens": max(prefill, sequences),
            "gpu_memory_utilization": self._memory_share(),
            "enforce_eager": not batching.cuda_graphs,
            **self._adapter_arguments,
        }

    def _length(self, encoded: Sequence[list[int]]) -> int:
        """Return the tokens of the longest prompt with its answer, as far as the model goes."""
        longest = max(map(len, encoded))
        wanted = longest + self._parameters.max_new_tokens
        config = self._model.load_config()
        text = {**config, **config.get("text_config", {})}
        limit = int(text.get("max_position_embeddings") or wanted)
        if wanted > limit:
            logger.warning(
                "the longest prompt has %d tokens: with max_new_tokens=%d it is longer than the "
                "%d tokens of the model, at which vLLM cuts answers off",
                longest,
                self._parameters.max_new_tokens,
                limit,
            )
        return min(wanted, limit)

    def _memory_share(self) -> float:
        """Return the share of the device's memory for weights, cache and working memory."""
        import torch

        limit, whole = self._parameters.batching.memory_gb, self._parameters.gpu.memory_gb
        if limit is None and whole is not None:
            limit = whole - CONTEXT_BYTES / 1e9
        free, total = torch.cuda.mem_get_info()
        # vLLM's process has a context of its own, and refuses to start with less than it asks for
        usable = USABLE_SHARE * (free - CONTEXT_BYTES)
        return min(usable, usable if limit is None else limit * 1e9) / total


def _adapter_arguments(adapter: ModelDirectory | None) -> dict[str, Any]:
    """Return what vLLM starts with to take an adapter.

    Raises:
        InputError: Its rank is above what vLLM takes.
    """
    if adapter is None:
        return {}
    path = adapter.path / "adapter_config.json"
    config = json.loads(path.read_text("utf-8"))
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    fitting = [most for most in MAX_LORA_RANKS if most >= rank]
    if not fitting:
        raise InputError(
            f"{path}: the adapter's rank is {rank}, vLLM takes {MAX_LORA_RANKS[-1]} at most; set "
            f"inference.backend: transformers, or lower sft.lora.lora_r"
        )
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": fitting[0]}
