"""The engine that uses vLLM: continuous batching with a paged KV cache."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ja_instruct.engine.answer import PROMPT_ERRORS, Answer, AnswerDecoder
from ja_instruct.engine.batch_size import PREFILL_TOKENS, USABLE_SHARE
from ja_instruct.errors import InputError
from ja_instruct.memory.estimates import CONTEXT_BYTES
from ja_instruct.models.json_files import (
    ADAPTER_CONFIG_FILE,
    DEFAULT_RANK,
    read_adapter_config,
    read_end_ids,
)
from ja_instruct.models.loading import free_gpu_memory
from ja_instruct.models.text_model import text_settings

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.llm_engine import LLMEngine

    from ja_instruct.engine.parameters import EngineParameters
    from ja_instruct.models.directory import ModelDirectory

logger = logging.getLogger(__name__)

PACKAGES = ("vllm", "vllm_bnb_plugin")
# vllm.config.lora.MaxLoRARanks, without 1
MAX_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# vLLM allocates sampling state for each sequence, used or not: a MB with Gemma's vocabulary
MAX_SEQUENCES = 256
# vLLM's finish reasons of a complete answer
ANSWERED = ("stop", "length")


def require_vllm() -> None:
    """Raise ``InputError`` unless vLLM and its plugin for 4-bit weights are installed."""
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise InputError(
            f"inference.backend 'vllm': {' and '.join(map(repr, missing))} not installed; "
            f"pip install 'ja-instruct[vllm]' (in an environment of its own, without "
            f"-c requirements.txt: vLLM needs other versions), or set backend: transformers"
        )


class VllmEngine:
    """Answers with vLLM, greedily: NF4 weights by bitsandbytes, the adapter as vLLM's LoRA.

    Written against the sources of vllm 0.32.0 and vllm-bnb-plugin 0.0.3; this project has not run
    it on a GPU. Answers can differ from those of the other engines by rounding, and where a bad
    word after a space has as many tokens as the word alone: vLLM bans that spelling too.
    """

    def __init__(
        self,
        model: ModelDirectory,
        adapter: ModelDirectory | None,
        parameters: EngineParameters,
        *,
        stop_at_end_of_turn: bool = False,
    ) -> None:
        """Check the model's files; ``generate`` starts vLLM, which needs the prompts' lengths.

        Raises:
            InputError: vLLM is not installed, or does not support the adapter's rank.
        """
        require_vllm()
        self._model = model
        self._adapter = adapter
        self._parameters = parameters
        self._decoder = AnswerDecoder.of(
            model.load_tokenizer(),
            parameters,
            read_end_ids(model.path, model.remedy),
            stop_at_end_of_turn=stop_at_end_of_turn,
        )
        self._adapter_arguments = _adapter_arguments(adapter)

    def generate(self, prompts: Sequence[str]) -> Iterator[tuple[int, Answer]]:
        """Yield position and answer as answers end; see ``Backend``.

        vLLM starts here and is shut down after the last answer, which frees its memory.

        Raises:
            Exception: vLLM cannot start, or its process died. Answers until then have been yielded.
        """
        encoded = self._decoder.control.encode(prompts)
        if not encoded:
            return
        free_gpu_memory()
        from vllm import LLM

        engine = LLM(**self._arguments(encoded)).llm_engine
        try:
            yield from self._decoder.decode_timed(self._answer(engine, encoded), encoded)
        finally:
            # the GPU memory belongs to a process of vLLM
            engine.engine_core.shutdown()

    def _answer(
        self, engine: LLMEngine, encoded: Sequence[list[int]]
    ) -> Iterator[tuple[int, list[int] | Exception]]:
        """Yield each prompt's position with its answer's token ids, or with its error.

        ``LLM.generate`` returns all answers at the end, so a killed run would lose them.
        """
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import tokens_input

        settings, adapter = self._sampling(), self._adapter_request()
        for position, ids in enumerate(encoded):
            try:
                engine.add_request(str(position), tokens_input(ids), settings, lora_request=adapter)
            except (*PROMPT_ERRORS, VLLMClientError) as error:
                logger.exception("vLLM refuses prompt %d", position)
                yield position, error.with_traceback(None)
        while engine.has_unfinished_requests():
            for output in engine.step():
                if not output.finished:
                    continue
                (answer,) = output.outputs
                if answer.finish_reason in ANSWERED:
                    yield int(output.request_id), list(answer.token_ids)
                else:
                    reason = f"vLLM ended the answer with '{answer.finish_reason}'"
                    yield int(output.request_id), RuntimeError(reason)

    def _sampling(self) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = self._parameters
        return SamplingParams(
            temperature=0.0,
            # vLLM's penalty counts prompt and answer
            repetition_penalty=parameters.repetition_penalty,
            max_tokens=parameters.max_new_tokens,
            stop_token_ids=list(self._decoder.stop_ids),
            bad_words=list(parameters.bad_words),
            # the text is decoded from the ids, as in every engine
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _adapter_request(self) -> LoRARequest | None:
        from vllm.lora.request import LoRARequest

        return LoRARequest("adapter", 1, str(self._adapter.path)) if self._adapter else None

    def _arguments(self, encoded: Sequence[list[int]]) -> dict[str, Any]:
        """Return vLLM's arguments for these prompts."""
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
            # per step, including a token of every answer
            "max_num_batched_tokens": max(prefill, sequences),
            "gpu_memory_utilization": self._memory_share(),
            "enforce_eager": not batching.cuda_graphs,
            **self._adapter_arguments,
        }

    def _length(self, encoded: Sequence[list[int]]) -> int:
        """Return the tokens of the longest prompt with its answer, up to the model's limit."""
        longest = max(map(len, encoded))
        wanted = longest + self._parameters.max_new_tokens
        config = text_settings(self._model.load_config())
        limit = int(config.get("max_position_embeddings") or wanted)
        if wanted > limit:
            logger.warning(
                "the longest prompt has %d tokens: with max_new_tokens=%d it exceeds the model's "
                "%d tokens, at which vLLM cuts answers off",
                longest,
                self._parameters.max_new_tokens,
                limit,
            )
        return min(wanted, limit)

    def _memory_share(self) -> float:
        """Return the share of the device's memory for weights, cache and activations."""
        import torch

        limit = self._parameters.memory_limit_gb
        free, total = torch.cuda.mem_get_info()
        # vLLM's process has its own CUDA context, and does not start with less than its share free
        usable = USABLE_SHARE * (free - CONTEXT_BYTES)
        return min(usable, usable if limit is None else limit * 1e9) / total


def _adapter_arguments(adapter: ModelDirectory | None) -> dict[str, Any]:
    """Return vLLM's arguments for an adapter, whose rank it must support."""
    if adapter is None:
        return {}
    config = read_adapter_config(adapter.path, adapter.remedy)
    rank = max([config.get("r", DEFAULT_RANK), *(config.get("rank_pattern") or {}).values()])
    fitting = [most for most in MAX_LORA_RANKS if most >= rank]
    if not fitting:
        raise InputError(
            f"{adapter.path / ADAPTER_CONFIG_FILE}: the adapter's rank is {rank}, vLLM supports at "
            f"most {MAX_LORA_RANKS[-1]}; set inference.backend: transformers, or lower "
            f"sft.lora.lora_r"
        )
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": fitting[0]}
