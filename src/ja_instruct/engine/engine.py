"""Greedy generation for up to ``max_num_seqs`` sequences at a time, with continuous batching.

A decoding step of a large model takes nearly the same time for one sequence as for many, because
its weights are read once. Most of the rest is Python and kernel launches, which a CUDA graph
avoids. So each step runs all rows of the batch at fixed addresses, replayed from a graph on a GPU,
and a row whose sequence has ended takes the next prompt.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ja_instruct.engine.kv_cache import KVCache, causal_mask

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from ja_instruct.engine.sampler import Sampler

logger = logging.getLogger(__name__)

# From an answer's tokens so far, and how many of them are known to be allowed, to the index of the
# first that is not allowed, or None.
FindBanned = Callable[[Sequence[int], int], int | None]

# The span of the cache that a step reads is rounded up to a multiple of this: one graph for each,
# and few positions read in vain.
SPAN_TOKENS = 512


@dataclass
class _Sequence:
    """A prompt, at its position in the list, and the state of its answer.

    The first ``allowed`` tokens of the answer are known to be allowed. ``refused`` are tokens that
    were refused right after those.
    """

    position: int
    prompt_ids: list[int]
    max_new_tokens: int
    allowed: int = 0
    refused: list[int] = field(default_factory=list)


class Engine:
    """Answers prompts with a causal language model, greedily, in any order."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        sampler: Sampler,
        *,
        stop_ids: Sequence[int],
        max_num_seqs: int,
        max_length: int,
        prefill_chunk_size: int = 1024,
        check_every: int = 16,
        use_cuda_graphs: bool = True,
        int8_cache: bool = False,
    ) -> None:
        """Allocate all memory that generation needs.

        Of the sizes and switches ``int8_cache`` alone changes answers.

        Args:
            model: In evaluation mode.
            sampler: For the same batch size and length.
            stop_ids: Tokens that end an answer.
            max_num_seqs: Batch size.
            max_length: Tokens of a prompt with its answer.
            prefill_chunk_size: Prompt tokens per forward pass.
            check_every: Decoding steps between checks for ended sequences, which synchronize with
                the device.
            use_cuda_graphs: Whether to capture and replay steps, on a GPU.
            int8_cache: Whether the KV cache is int8; the model needs ``use_grouped_attention``.
        """
        self._model: Any = model
        self._sampler = sampler
        self._stop_ids = frozenset(stop_ids)
        self._max_num_seqs, self._max_length = max_num_seqs, max_length
        self._prefill_chunk_size, self._check_every = prefill_chunk_size, check_every
        self._device = self._model.device
        self._dtype = next(
            weight.dtype for name, weight in self._model.named_parameters() if "norm" in name
        )
        self._cache = KVCache(
            self._model.config,
            max_num_seqs=max_num_seqs,
            length=max_length,
            dtype=self._dtype,
            device=self._device,
            is_int8=int8_cache,
        )
        # the state of each row: latest token, its position, answer and length of the answer
        self._tokens, self._positions, self._counts = (
            torch.zeros(max_num_seqs, dtype=torch.long, device=self._device) for _ in range(3)
        )
        self._answers = torch.zeros(
            (max_num_seqs, max_length), dtype=torch.long, device=self._device
        )
        self._rows = torch.arange(max_num_seqs, device=self._device)
        self._use_cuda_graphs = use_cuda_graphs and self._device.type == "cuda"
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._find_banned: FindBanned | None = None

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        find_banned: FindBanned | None = None,
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield the position of each prompt and its answer's token ids, as answers end.

        An answer ends with one of ``stop_ids``, which it includes, after ``max_new_tokens``, or at
        ``max_length``.

        ``find_banned`` finds what the sampler cannot, such as words in the text. It is called every
        few steps; an answer is rolled back to the token that it returns, where the next best token
        is chosen.

        Raises:
            ValueError: A prompt is empty or leaves no room for an answer.
        """
        self._find_banned = find_banned
        sequences = []
        for position, ids in enumerate(prompts):
            limit = min(max_new_tokens, self._max_length - len(ids))
            if not ids or limit < 1:
                raise ValueError(f"prompt {position} has {len(ids)} tokens: no room for an answer")
            sequences.append(_Sequence(position, list(ids), limit))
        # the longest first, so that the last to run are short
        waiting = deque(sorted(sequences, key=lambda sequence: -len(sequence.prompt_ids)))
        running: dict[int, _Sequence] = {}
        while waiting or running:
            for row in range(self._max_num_seqs):
                if waiting and row not in running:
                    running[row] = waiting.popleft()
                    self._prefill(row, running[row].prompt_ids)
            self._decode(running)
            yield from self._collect(running)

    def _prefill(self, row: int, prompt_ids: list[int]) -> None:
        """Process a prompt in chunks, and choose the answer's first token."""
        ids = torch.tensor(prompt_ids, device=self._device)
        self._sampler.start(row, prompt_ids)
        logits = torch.empty(0)
        for start in range(0, len(prompt_ids), self._prefill_chunk_size):
            chunk = ids[None, start : start + self._prefill_chunk_size]
            span = start + chunk.shape[1]
            positions = torch.arange(start, span, device=self._device)[None]
            self._cache.place(positions, span, row)
            logits = self._forward(chunk, positions, span)
        first = self._sampler.choose(logits, slice(row, row + 1))
        self._tokens[row] = first[0]
        self._positions[row] = len(prompt_ids)
        self._answers[row, 0] = first[0]
        self._counts[row] = 1

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, span: int) -> torch.Tensor:
        """Return the float32 logits of the last tokens, (sequences, vocabulary)."""
        output = self._model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=causal_mask(self._model.config, positions, span, self._dtype),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def _decode(self, running: dict[int, _Sequence]) -> None:
        """Take up to ``check_every`` steps with all rows; those without a sequence are ignored."""
        counts = self._counts.tolist()
        left = (sequence.max_new_tokens - counts[row] for row, sequence in running.items())
        steps = min(self._check_every, max(left))
        longest = max(len(sequence.prompt_ids) + counts[row] for row, sequence in running.items())
        span = min(-(-(longest + steps) // SPAN_TOKENS) * SPAN_TOKENS, self._max_length)
        for _ in range(steps):
            self._take_step(span)

    def _take_step(self, span: int) -> None:
        """Replay the step's graph, or capture it; without graphs launch each kernel."""
        if self._use_cuda_graphs and span in self._graphs:
            self._graphs[span].replay()
            return
        if self._use_cuda_graphs:
            try:
                self._graphs[span] = self._capture(span)
            except torch.OutOfMemoryError:
                raise
            # PyTorch and CUDA raise it where an operation synchronizes with the host
            except RuntimeError as error:
                logger.warning(
                    "a step of this model cannot be captured as a CUDA graph, so its kernels are "
                    "launched one by one, which takes several times as long: %s",
                    error,
                )
                self._use_cuda_graphs = False
            else:
                return
        self._step(span)

    def _capture(self, span: int) -> torch.cuda.CUDAGraph:
        """Take a step and return its graph; a warm-up step before initializes the libraries."""
        state = [self._tokens, self._positions, self._counts, self._answers]
        saved = [tensor.clone() for tensor in state]
        sampler_state = self._sampler.state()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._step(span)
        torch.cuda.current_stream().wait_stream(side)
        for tensor, before in zip(state, saved, strict=True):
            tensor.copy_(before)
        self._sampler.restore(sampler_state)
        graph = torch.cuda.CUDAGraph()
        # graphs run one after the other, so they share their temporary memory
        shared = next((known.pool() for known in self._graphs.values()), None)
        with torch.cuda.graph(graph, pool=shared):
            self._step(span)
        graph.replay()
        return graph

    def _step(self, span: int) -> None:
        """Compute one more token for every row."""
        # without a sequence a row's position could pass the end of the cache
        positions = self._positions.clamp(max=self._max_length - 1)[:, None]
        self._cache.place(positions, span)
        logits = self._forward(self._tokens[:, None], positions, span)
        chosen = self._sampler.choose(logits, slice(0, self._max_num_seqs))
        self._tokens.copy_(chosen)
        self._positions.add_(1)
        self._answers[self._rows, self._counts.clamp(max=self._max_length - 1)] = chosen
        self._counts.add_(1)

    def _collect(self, running: dict[int, _Sequence]) -> Iterator[tuple[int, list[int]]]:
        """Yield the answers that have ended, and free their rows."""
        counts = self._counts.tolist()
        answers = self._answers[:, : max(counts)].tolist()
        for row, sequence in list(running.items()):
            ids = answers[row][: min(counts[row], sequence.max_new_tokens)]
            end = next((place for place, token in enumerate(ids) if token in self._stop_ids), None)
            ids = ids if end is None else ids[: end + 1]
            if self._roll_back(row, sequence, ids) or (
                end is None and len(ids) < sequence.max_new_tokens
            ):
                continue
            del running[row]
            # until the next prompt, the row's steps attend to few tokens
            self._positions[row] = 0
            yield sequence.position, ids

    def _roll_back(self, row: int, sequence: _Sequence, ids: list[int]) -> bool:
        """Return a row to its first token that is not allowed; False if all tokens are."""
        banned = self._find_banned(ids, sequence.allowed) if self._find_banned else None
        if banned is None:
            if len(ids) > sequence.allowed:
                sequence.allowed, sequence.refused = len(ids), []
            return False
        if banned > sequence.allowed:
            sequence.allowed, sequence.refused = banned, []
        sequence.refused.append(ids[banned])
        kept = ids[:banned]
        self._sampler.start(row, sequence.prompt_ids, kept, sequence.refused)
        # the token before is computed again at its position, and what follows it chosen anew
        self._tokens[row] = (kept or sequence.prompt_ids)[-1]
        self._positions[row] = len(sequence.prompt_ids) + banned - 1
        self._counts[row] = banned
        return True
