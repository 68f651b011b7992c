"""The engine that answers many prompts at the same time, in the memory there is."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ja_instruct.engine.answer import (
    PROMPT_ERRORS,
    Answer,
    AnswerDecoder,
    failed_answer,
)
from ja_instruct.engine.batch_size import (
    PREFILL_TOKENS,
    EngineSizes,
    bytes_of_merging,
    free_bytes,
)
from ja_instruct.engine.parameters import EngineParameters
from ja_instruct.memory.estimates import CONTEXT_BYTES
from ja_instruct.models.loading import free_gpu_memory
from ja_instruct.prompts import PromptParameters

if TYPE_CHECKING:
    from ja_instruct.engine.engine import Engine
    from ja_instruct.models.directory import ModelDirectory

logger = logging.getLogger(__name__)

# So many rows keep a processor busy. Products with fewer can take longer than those with 16: on one
# core of a Xeon 16 rows of Gemma 3 270M's head took 0.14 s, 10 rows 0.28 s
CPU_SLOTS, FULL_CPU_SLOTS = 32, 16
# On a CPU it costs nothing to look after each step which answers have ended
CPU_CHECK_EVERY = 1


class Batched:
    """Answers prompts side by side, greedily; an answer that ends makes room for the next prompt.

    Answers are those of ``OneByOne`` but for rounding; how they are generated stands in
    ``ja_instruct.engine.engine``.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        parameters: EngineParameters,
        prompts: PromptParameters,
        *,
        adapter: ModelDirectory | None = None,
        weights_before: str = "",
    ) -> None:
        """Take a loaded model.

        Args:
            model: A transformers model; one in 4 bits may become a 16-bit one.
            tokenizer: Its tokenizer.
            parameters: How to decode, and how much memory to take.
            prompts: Their format; that of a chat has turns that end.
            adapter: What a model in 4 bits has yet to take up.
            weights_before: Those of answers that these are to stand beside, for ``auto``.
        """
        self._model = model
        self._adapter = adapter
        self._tokenizer = tokenizer
        self._parameters = parameters
        self._form = AnswerDecoder.of(tokenizer, parameters, prompts)
        self._weights = ""
        self._weights_before = weights_before
        self._prefill = PREFILL_TOKENS[-1]

    def generate(self, prompts: Sequence[str]) -> Iterator[tuple[int, Answer]]:
        """Yield position and answer as answers end; see ``Backend``.

        An answer has up to ``max_new_tokens``, however long its prompt is.
        """
        encoded = [self._tokenizer(prompt)["input_ids"] for prompt in prompts]
        if not encoded:
            return
        length = max(map(len, encoded)) + self._parameters.max_new_tokens
        if not self._weights:
            self._weights = self._take_up_weights(len(encoded), length)
        before = time.perf_counter()
        for position, found in self._answer(
            encoded, self._count_max_num_seqs(len(encoded), length)
        ):
            now = time.perf_counter()
            seconds, before = now - before, now
            if isinstance(found, Exception):
                yield position, failed_answer(found, seconds)
            else:
                answer = self._form.answer(found, len(encoded[position]), seconds)
                yield position, replace(answer, weights=self._weights)

    def _take_up_weights(self, prompts: int, length: int) -> str:
        """Bring the model into the form that steps are taken with, and return its name."""
        from ja_instruct.engine.attention import use_grouped_attention
        from ja_instruct.engine.fused_layers import use_fused_layers
        from ja_instruct.engine.weights import keep_adapter_unmerged, merge_in_bf16

        weights = str(self._model.dtype).removeprefix("torch.")
        if getattr(self._model, "is_loaded_in_4bit", False):
            weights = self._parameters.batching.weights
            if weights == "auto":
                weights = self._choose_weights(prompts, length)
            take_up = merge_in_bf16 if weights == "bf16" else keep_adapter_unmerged
            self._model = take_up(self._model, self._adapter)
        self._model.eval()
        use_grouped_attention(self._model)
        use_fused_layers(self._model)
        free_gpu_memory()
        return weights

    def _choose_weights(self, prompts: int, length: int) -> str:
        """Return those of the answers before, and otherwise those that answer sooner."""
        before = self._weights_before
        if before == "nf4":
            return before
        in_16_bits = self._slots_of_bf16(length)
        if before and in_16_bits:
            return "bf16"
        if before:
            logger.warning(
                "earlier answers were given with %s weights, for which this GPU has no room: the "
                "others are given with nf4 ones, which round otherwise. Remove the answer store to "
                "have all of one kind",
                before,
            )
            return "nf4"
        # a step takes about as long with either, and prompts are read faster in 16 bits
        in_4_bits = min(self._max_num_seqs_that_fit(self._free_bytes(), length)[0], _most_in_nf4())
        rounds = [
            math.ceil(
                prompts
                / max(1, min(max_num_seqs, self._parameters.batching.max_num_seqs or max_num_seqs))
            )
            for max_num_seqs in (in_16_bits, in_4_bits)
        ]
        return "bf16" if in_16_bits and rounds[0] <= rounds[1] else "nf4"

    def _slots_of_bf16(self, length: int) -> int:
        """Return how many prompts would fit at a time; 0 where the weights do not."""
        grown, passing = bytes_of_merging(self._model, self._adapter)
        left = self._free_bytes() - grown
        return self._max_num_seqs_that_fit(left, length)[0] if left >= passing else 0

    def _max_num_seqs_that_fit(self, free: int, length: int) -> tuple[int, int]:
        """Return how many prompts fit at a time, and the tokens of each that are read at once."""
        sizes, batching = self._sizes(), self._parameters.batching
        prefill = sizes.prefill_chunk_size(batching.prefill_chunk_size, free, length)
        return sizes.max_num_seqs_that_fit(free, prefill, length), prefill

    def _sizes(self) -> EngineSizes:
        return EngineSizes.of_model(
            self._model, int8_cache=self._parameters.batching.has_int8_cache
        )

    def _free_bytes(self) -> int:
        limit, whole = self._parameters.batching.memory_gb, self._parameters.gpu.memory_gb
        if limit is None and whole is not None:
            limit = whole - CONTEXT_BYTES / 1e9
        return free_bytes(self._model.device, limit)

    def _count_max_num_seqs(self, prompts: int, length: int) -> int:
        """Return how many prompts to answer at a time, and tell it; settle how they are read."""
        batching = self._parameters.batching
        free = self._free_bytes()
        fit, self._prefill = self._max_num_seqs_that_fit(free, length)
        wanted = min(prompts, batching.max_num_seqs or prompts)
        if batching.max_num_seqs is None:
            wanted = self._bounded(prompts)
        max_num_seqs = max(1, min(fit, wanted))
        if fit < min(wanted, batching.max_num_seqs or 1):
            logger.warning(
                "memory holds %d prompts of %d tokens at a time by estimate, not %d; trying %d",
                fit,
                length,
                wanted,
                max_num_seqs,
            )
        logger.info(
            "answering %d prompts, %d at a time: %s weights, %d tokens each, %.1f GB of cache in "
            "%s, %.1f GB were free",
            prompts,
            max_num_seqs,
            self._weights,
            length,
            self._sizes().cache_bytes(max_num_seqs, length) / 1e9,
            "int8" if batching.has_int8_cache else "the model's type",
            free / 1e9,
        )
        return max_num_seqs

    def _bounded(self, prompts: int) -> int:
        """Return how many prompts at a time are worth their memory."""
        if self._is_on_cpu:
            return FULL_CPU_SLOTS if 8 < prompts < FULL_CPU_SLOTS else min(prompts, CPU_SLOTS)
        if self._weights != "nf4":
            return prompts
        return min(prompts, _most_in_nf4())

    def _answer(
        self, encoded: Sequence[list[int]], max_num_seqs: int
    ) -> Iterator[tuple[int, list[int] | Exception]]:
        """Yield the position of each prompt with its answer's ids, or with why it has none."""
        waiting = {position: ids for position, ids in enumerate(encoded) if ids}
        for position in range(len(encoded)):
            if position not in waiting:
                yield position, ValueError("the prompt has no tokens")
        while waiting:
            failure = None
            try:
                for position, ids in self._side_by_side(waiting, max_num_seqs):
                    del waiting[position]
                    yield position, ids
            except PROMPT_ERRORS as error:
                logger.warning(
                    "answering %d prompts %d at a time failed, %d of them are left: %s",
                    len(encoded),
                    max_num_seqs,
                    len(waiting),
                    error,
                    exc_info=not _is_out_of_memory(error),
                )
                # its frames hold the engine, and so the memory
                failure = error.with_traceback(None)
            free_gpu_memory()
            if failure is not None and _is_out_of_memory(failure) and max_num_seqs > 1:
                max_num_seqs = max(1, min(max_num_seqs, len(waiting)) * 3 // 4)
            elif failure is not None:
                yield from self._one_after_the_other(waiting)
                return

    def _one_after_the_other(
        self, waiting: Mapping[int, list[int]]
    ) -> Iterator[tuple[int, list[int] | Exception]]:
        """Yield the same, each prompt in an engine of its own, so that it fails alone."""
        for position, ids in waiting.items():
            found: list[int] | Exception
            try:
                ((_, found),) = self._side_by_side({position: ids}, 1)
            except PROMPT_ERRORS as error:
                logger.exception("generating the answer of prompt %d failed", position)
                found = error.with_traceback(None)
            free_gpu_memory()
            yield position, found

    def _side_by_side(
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
        from ja_instruct.engine.engine import Engine, Settings
        from ja_instruct.engine.sampler import Sampler

        parameters = self._parameters
        ends = self._stops()
        rules = Sampler(
            vocab_size=self._model.config.get_text_config().vocab_size,
            max_num_seqs=max_num_seqs,
            max_length=length,
            repetition_penalty=parameters.repetition_penalty,
            # as transformers has it, what ends an answer cannot be banned
            bad_words_ids=[
                ids for ids in self._form.bad_words_ids if ids not in [[e] for e in ends]
            ],
            penalized_prompt=parameters.penalty_on == "prompt_and_answer",
            exempt_ids=self._form.ends if parameters.penalty_spares_end else (),
            device=self._model.device,
        )
        settings = Settings(
            max_num_seqs=max_num_seqs,
            max_length=length,
            prefill_chunk_size=self._prefill,
            use_graph=parameters.batching.cuda_graphs,
            int8_cache=parameters.batching.has_int8_cache,
            **({"check_every": CPU_CHECK_EVERY} if self._is_on_cpu else {}),
        )
        return Engine(self._model, settings, rules, end_ids=ends)

    @property
    def _is_on_cpu(self) -> bool:
        return bool(self._model.device.type == "cpu")

    def _stops(self) -> list[int]:
        """Return the tokens at which generation stops: the model's own, as with ``generate``."""
        if self._form.stops_at_turn:
            return list(self._form.ends)
        own = self._model.generation_config.eos_token_id
        return [own] if isinstance(own, int) else list(own or ())


def _most_in_nf4() -> int:
    """Return how many prompts at a time 4-bit weights are for: of more, a step writes them out."""
    from ja_instruct.engine.kernels.nf4_matmul import MAX_ROWS

    return MAX_ROWS


def _is_out_of_memory(error: Exception) -> bool:
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
