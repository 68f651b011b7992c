"""The engine that answers many prompts at the same time, as many as memory holds."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ja_instruct.engine.answer import PROMPT_ERRORS, Answer, AnswerDecoder
from ja_instruct.engine.batch_size import PREFILL_TOKENS, EngineSizes, bytes_of_merging, free_bytes
from ja_instruct.models.json_files import as_ids
from ja_instruct.models.loading import free_gpu_memory

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ja_instruct.engine.engine import Engine
    from ja_instruct.engine.parameters import EngineParameters
    from ja_instruct.models.directory import ModelDirectory

logger = logging.getLogger(__name__)

# 32 rows keep a processor busy. Matrix products with fewer than 16 rows can take longer than those
# with 16: on one core of a Xeon 16 rows of Gemma 3 270M's head took 0.14 s, 10 rows 0.28 s.
CPU_MAX_NUM_SEQS, CPU_FULL_NUM_SEQS = 32, 16
# On a CPU it costs nothing to look after each step which answers have ended
CPU_CHECK_EVERY = 1


class Batched:
    """Answers prompts in a batch, greedily; when an answer ends, the next prompt takes its place.

    Answers equal those of ``OneByOne`` up to rounding. This class decides what depends on the free
    memory: the kind of weights, the batch size, the prefill chunk size, and what to do when memory
    runs out. ``ja_instruct.engine.engine.Engine`` then generates.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        parameters: EngineParameters,
        *,
        adapter: ModelDirectory | None = None,
        stop_at_end_of_turn: bool = False,
        weights_before: str = "",
    ) -> None:
        """Use a loaded model, which is changed in place; see ``load_engine``.

        ``adapter`` has not been applied to the model yet.
        """
        self._model: Any = model
        self._adapter = adapter
        self._tokenizer = tokenizer
        self._parameters = parameters
        own_ends = as_ids(self._model.generation_config.eos_token_id)
        self._decoder = AnswerDecoder.of(
            tokenizer, parameters, own_ends, stop_at_end_of_turn=stop_at_end_of_turn
        )
        self._weights = ""
        self._weights_before = weights_before
        self._prefill_chunk_size = PREFILL_TOKENS[-1]

    def generate(self, prompts: Sequence[str]) -> Iterator[tuple[int, Answer]]:
        """Yield position and answer as answers end; see ``Backend``.

        An answer has up to ``max_new_tokens`` tokens, however long its prompt is.
        """
        encoded = self._decoder.control.encode(prompts)
        if not encoded:
            return
        length = max(map(len, encoded)) + self._parameters.max_new_tokens
        if not self._weights:
            self._weights = self._prepare_model(len(encoded), length)
        max_num_seqs = self._choose_sizes(len(encoded), length)
        results = self._answer(encoded, max_num_seqs)
        yield from self._decoder.decode_timed(results, encoded, self._weights)

    def _prepare_model(self, prompts: int, length: int) -> str:
        """Apply the adapter, replace layers by faster ones, and return the kind of weights."""
        from ja_instruct.engine.attention import use_grouped_attention
        from ja_instruct.engine.fused_layers import use_fused_layers
        from ja_instruct.engine.weights import keep_adapter_unmerged, merge_in_bf16

        weights = str(self._model.dtype).removeprefix("torch.")
        if getattr(self._model, "is_loaded_in_4bit", False):
            weights = self._parameters.batching.weights
            if weights == "auto":
                weights = self._choose_weights(prompts, length)
            apply = merge_in_bf16 if weights == "bf16" else keep_adapter_unmerged
            self._model = apply(self._model, self._adapter)
        self._model.eval()
        use_grouped_attention(self._model)
        use_fused_layers(self._model)
        free_gpu_memory()
        return weights

    def _choose_weights(self, prompts: int, length: int) -> str:
        """Return the kind of the earlier answers' weights, else the one that needs fewer batches.

        A step takes about as long with either, and prefill is faster in 16 bits.
        """
        before = self._weights_before
        if before == "nf4":
            return before
        fit_bf16 = self._num_seqs_in_bf16(length)
        if before and fit_bf16:
            return "bf16"
        if before:
            logger.warning(
                "earlier answers were given with %s weights, which do not fit on this GPU; the "
                "others are given with nf4 weights, which round differently. Remove the answer "
                "store to get all answers with one kind of weights",
                before,
            )
            return "nf4"
        fit_nf4 = min(self._fit(self._free_bytes(), length)[0], _max_num_seqs_of_nf4())
        limit = self._parameters.batching.max_num_seqs or prompts
        batches_bf16, batches_nf4 = (
            math.ceil(prompts / max(1, min(fit, limit))) for fit in (fit_bf16, fit_nf4)
        )
        return "bf16" if fit_bf16 and batches_bf16 <= batches_nf4 else "nf4"

    def _num_seqs_in_bf16(self, length: int) -> int:
        """Return how many sequences fit beside bf16 weights; 0 if the weights do not fit."""
        growth, temporary = bytes_of_merging(self._model, self._adapter)
        left = self._free_bytes() - growth
        return self._fit(left, length)[0] if left >= temporary else 0

    def _fit(self, free: int, length: int) -> tuple[int, int]:
        """Return how many sequences fit into free memory, and the prefill chunk size."""
        sizes = self._sizes()
        chunk = sizes.prefill_chunk_size(self._parameters.batching.prefill_chunk_size, free, length)
        return sizes.max_num_seqs_that_fit(free, chunk, length), chunk

    def _sizes(self) -> EngineSizes:
        return EngineSizes.of_model(
            self._model, int8_cache=self._parameters.batching.has_int8_cache
        )

    def _free_bytes(self) -> int:
        return free_bytes(self._model.device, self._parameters.memory_limit_gb)

    def _choose_sizes(self, prompts: int, length: int) -> int:
        """Set the prefill chunk size, and log and return the batch size."""
        batching = self._parameters.batching
        free = self._free_bytes()
        fit, self._prefill_chunk_size = self._fit(free, length)
        if batching.max_num_seqs is None:
            wanted = self._useful_num_seqs(prompts)
        else:
            wanted = min(prompts, batching.max_num_seqs)
        max_num_seqs = max(1, min(fit, wanted))
        if fit < min(wanted, batching.max_num_seqs or 1):
            logger.warning(
                "memory holds an estimated %d sequences of %d tokens, not %d; trying %d",
                fit,
                length,
                wanted,
                max_num_seqs,
            )
        logger.info(
            "answering %d prompts in batches of %d: %s weights, %d tokens each, %.1f GB of %s KV "
            "cache, %.1f GB were free",
            prompts,
            max_num_seqs,
            self._weights,
            length,
            self._sizes().cache_bytes(max_num_seqs, length) / 1e9,
            "int8" if batching.has_int8_cache else "16- or 32-bit",
            free / 1e9,
        )
        return max_num_seqs

    def _useful_num_seqs(self, prompts: int) -> int:
        """Return the largest batch size that is worth its memory."""
        if self._is_on_cpu:
            full = CPU_FULL_NUM_SEQS
            return full if 8 < prompts < full else min(prompts, CPU_MAX_NUM_SEQS)
        return min(prompts, _max_num_seqs_of_nf4()) if self._weights == "nf4" else prompts

    def _answer(
        self, encoded: Sequence[list[int]], max_num_seqs: int
    ) -> Iterator[tuple[int, list[int] | Exception]]:
        """Yield each prompt's position with its answer's token ids, or with its error.

        When memory runs out, the rest is tried with three quarters of the batch size; after any
        other error, one prompt at a time.
        """
        waiting = {position: ids for position, ids in enumerate(encoded) if ids}
        for position in range(len(encoded)):
            if position not in waiting:
                yield position, ValueError("the prompt has no tokens")
        while waiting:
            failure = None
            try:
                for position, ids in self._generate_batched(waiting, max_num_seqs):
                    del waiting[position]
                    yield position, ids
            except PROMPT_ERRORS as error:
                logger.warning(
                    "answering %d prompts in batches of %d failed, %d of them are left: %s",
                    len(encoded),
                    max_num_seqs,
                    len(waiting),
                    error,
                    exc_info=not _is_out_of_memory(error),
                )
                # the frames of its traceback hold the engine, and with it the memory
                failure = error.with_traceback(None)
            free_gpu_memory()
            if failure is not None and _is_out_of_memory(failure) and max_num_seqs > 1:
                max_num_seqs = max(1, min(max_num_seqs, len(waiting)) * 3 // 4)
            elif failure is not None:
                yield from self._generate_alone(waiting)
                return

    def _generate_alone(
        self, waiting: Mapping[int, list[int]]
    ) -> Iterator[tuple[int, list[int] | Exception]]:
        """Yield the same, each prompt with an engine of its own, so that it fails alone."""
        for position, ids in waiting.items():
            result: list[int] | Exception
            try:
                ((_, result),) = self._generate_batched({position: ids}, 1)
            except PROMPT_ERRORS as error:
                logger.exception("generating the answer of prompt %d failed", position)
                result = error.with_traceback(None)
            free_gpu_memory()
            yield position, result

    def _generate_batched(
        self, waiting: Mapping[int, list[int]], max_num_seqs: int
    ) -> Iterator[tuple[int, list[int]]]:
        from ja_instruct.engine.banned_words import BannedWords

        parameters = self._parameters
        positions, prompts = list(waiting), list(waiting.values())
        engine = self._build(max_num_seqs, max(map(len, prompts)) + parameters.max_new_tokens)
        words = parameters.bad_words if parameters.bad_words_in == "text" else ()
        find_banned = BannedWords(self._tokenizer, words).find_banned if words else None
        for index, ids in engine.generate(prompts, parameters.max_new_tokens, find_banned):
            yield positions[index], ids

    def _build(self, max_num_seqs: int, length: int) -> Engine:
        from ja_instruct.engine.engine import Engine
        from ja_instruct.engine.sampler import Sampler

        parameters = self._parameters
        stop_ids = self._decoder.stop_ids
        sampler = Sampler(
            vocab_size=self._model.config.get_text_config().vocab_size,
            max_num_seqs=max_num_seqs,
            max_length=length,
            repetition_penalty=parameters.repetition_penalty,
            # as in transformers, a token that ends an answer cannot be banned
            bad_words_ids=[
                ids for ids in self._decoder.bad_words_ids if ids not in [[one] for one in stop_ids]
            ],
            penalized_prompt=parameters.penalty_on == "prompt_and_answer",
            exempt_ids=stop_ids if parameters.penalty_spares_end else (),
            device=self._model.device,
        )
        return Engine(
            self._model,
            sampler,
            stop_ids=stop_ids,
            max_num_seqs=max_num_seqs,
            max_length=length,
            prefill_chunk_size=self._prefill_chunk_size,
            use_cuda_graphs=parameters.batching.cuda_graphs,
            int8_cache=parameters.batching.has_int8_cache,
            **({"check_every": CPU_CHECK_EVERY} if self._is_on_cpu else {}),
        )

    @property
    def _is_on_cpu(self) -> bool:
        return bool(self._model.device.type == "cpu")


def _max_num_seqs_of_nf4() -> int:
    """Return the largest useful batch of 4-bit weights: a larger one dequantizes them each step."""
    from ja_instruct.engine.kernels.nf4_matmul import MAX_ROWS

    return MAX_ROWS


def _is_out_of_memory(error: Exception) -> bool:
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
