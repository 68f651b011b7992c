"""Generation of up to ``max_num_seqs`` sequences at a time; a finished one is replaced.

A step of a large model costs nearly the same for one sequence and for many: the weights are read
once. And most of it is Python and the launching of kernels, which a CUDA graph does without. So all
max_num_seqs take a step together, at fixed addresses, from a graph where there is a GPU.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ja_instruct.engine.kv_cache import KVCache, causal_mask
from ja_instruct.engine.sampler import Sampler

logger = logging.getLogger(__name__)

# Takes an answer's tokens so far and how many of them are known to be allowed; returns the index of
# the first that may not stand there, or None.
FindBanned = Callable[[Sequence[int], int], int | None]

# The cache is looked at in steps of so many positions: a graph for each, and little read in vain.
SPAN_TOKENS = 512


@dataclass(frozen=True)
class Settings:
    """How the engine works; of all this ``int8_cache`` alone changes answers.

    Attributes:
        max_num_seqs: Sequences at a time.
        max_length: Tokens of a prompt with its answer.
        prefill_chunk_size: Tokens of a prompt that are computed at once.
        check_every: Steps between looking which sequences have ended, which stops the device.
        use_graph: Whether a step is a CUDA graph.
        int8_cache: Whether keys and values are kept in 8 bits, which a model takes after
            ``use_grouped_attention``.
    """

    max_num_seqs: int
    max_length: int
    prefill_chunk_size: int = 1024
    check_every: int = 16
    use_graph: bool = True
    int8_cache: bool = False


@dataclass
class _Job:
    position: int
    prompt_ids: list[int]
    limit: int
    # tokens of the answer that are known to be allowed, and what was refused behind them
    allowed: int = 0
    refused: list[int] = field(default_factory=list)


class Engine:
    """Answers prompts with a causal language model, greedily, in any order."""

    def __init__(
        self, model: Any, settings: Settings, rules: Sampler, *, end_ids: Sequence[int]
    ) -> None:
        """Allocate everything that generating needs.

        Args:
            model: A transformers model, or one wrapped by PEFT, in evaluation mode.
            settings: Sizes.
            rules: How a token is chosen; for as many max_num_seqs.
            end_ids: Tokens that end an answer.
        """
        self._model, self._settings, self._rules = model, settings, rules
        self._ends = frozenset(end_ids)
        self._config = model.config
        self._device = model.device
        self._dtype = next(
            weight.dtype for name, weight in model.named_parameters() if "norm" in name
        )
        self._cache = KVCache(
            model.config,
            max_num_seqs=settings.max_num_seqs,
            length=settings.max_length,
            dtype=self._dtype,
            device=self._device,
            is_int8=settings.int8_cache,
        )
        max_num_seqs = settings.max_num_seqs
        self._tokens = torch.zeros(max_num_seqs, dtype=torch.long, device=self._device)
        self._positions = torch.zeros(max_num_seqs, dtype=torch.long, device=self._device)
        self._counts = torch.zeros(max_num_seqs, dtype=torch.long, device=self._device)
        self._answers = torch.zeros(
            (max_num_seqs, settings.max_length), dtype=torch.long, device=self._device
        )
        self._rows = torch.arange(max_num_seqs, device=self._device)
        self._use_graph = settings.use_graph and self._device.type == "cuda"
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

        An answer ends with one of ``end_ids``, which it holds, after ``max_new_tokens``, or where
        ``max_length`` is reached.

        Args:
            prompts: Token ids.
            max_new_tokens: Of each answer.
            find_banned: Finds what the rules cannot see, such as words in the text. It is asked
                every few steps; an answer goes back to the token it names, and the next best is
                chosen there.

        Raises:
            ValueError: A prompt leaves no room for an answer.
        """
        self._find_banned = find_banned
        jobs = []
        for position, ids in enumerate(prompts):
            limit = min(max_new_tokens, self._settings.max_length - len(ids))
            if not ids or limit < 1:
                raise ValueError(f"prompt {position} has {len(ids)} tokens: no room for an answer")
            jobs.append(_Job(position, list(ids), limit))
        # the longest first: the last to end are short
        waiting = deque(sorted(jobs, key=lambda job: -len(job.prompt_ids)))
        running: dict[int, _Job] = {}
        while waiting or running:
            for slot in range(self._settings.max_num_seqs):
                if waiting and slot not in running:
                    running[slot] = waiting.popleft()
                    self._begin(slot, running[slot].prompt_ids)
            self._advance(running)
            yield from self._collect(running)

    def _begin(self, slot: int, prompt_ids: list[int]) -> None:
        """Read a prompt into a slot, and choose its answer's first token."""
        ids = torch.tensor(prompt_ids, device=self._device)
        self._rules.start(slot, prompt_ids)
        step = self._settings.prefill_chunk_size
        logits = torch.empty(0)
        for start in range(0, len(prompt_ids), step):
            piece = ids[None, start : start + step]
            positions = torch.arange(start, start + piece.shape[1], device=self._device)[None]
            span = start + piece.shape[1]
            self._cache.place(positions, span, slot)
            logits = self._forward(piece, positions, span)
        first = self._rules.choose(logits, slice(slot, slot + 1))
        self._tokens[slot] = first[0]
        self._positions[slot] = len(prompt_ids)
        self._answers[slot, 0] = first[0]
        self._counts[slot] = 1

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, span: int) -> torch.Tensor:
        """Return the scores of what follows the last of the tokens, (sequences, vocabulary)."""
        output = self._model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=causal_mask(self._config, positions, span, self._dtype),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        scores: torch.Tensor = output.logits[:, -1].float()
        return scores

    def _advance(self, running: dict[int, _Job]) -> None:
        """Take steps with all slots; those of slots that have ended are ignored."""
        counts = self._counts.tolist()
        left = [job.limit - counts[slot] for slot, job in running.items()]
        steps = min(self._settings.check_every, max(left))
        longest = max(len(job.prompt_ids) + counts[slot] for slot, job in running.items())
        span = min(-(-(longest + steps) // SPAN_TOKENS) * SPAN_TOKENS, self._settings.max_length)
        for _ in range(steps):
            self._take_step(span)

    def _take_step(self, span: int) -> None:
        if self._use_graph and span in self._graphs:
            self._graphs[span].replay()
            return
        if self._use_graph:
            try:
                self._graphs[span] = self._capture(span)
            except torch.OutOfMemoryError:
                raise
            # what PyTorch and CUDA raise where an operation waits for the host or copies from it
            except RuntimeError as error:
                logger.warning(
                    "a step of this model cannot be recorded as a CUDA graph, so each is launched "
                    "anew, which takes several times as long: %s",
                    error,
                )
                self._use_graph = False
            else:
                return
        self._step(span)

    def _capture(self, span: int) -> torch.cuda.CUDAGraph:
        """Take a step while it is recorded: once before it, so that libraries have warmed up."""
        state = [self._tokens, self._positions, self._counts, self._answers]
        saved = [tensor.clone() for tensor in state]
        rules = self._rules.state()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._step(span)
        torch.cuda.current_stream().wait_stream(side)
        for tensor, before in zip(state, saved, strict=True):
            tensor.copy_(before)
        self._rules.restore(rules)
        graph = torch.cuda.CUDAGraph()
        # the graphs run one after the other: they share what they need beside the cache
        shared = next((known.pool() for known in self._graphs.values()), None)
        with torch.cuda.graph(graph, pool=shared):
            self._step(span)
        graph.replay()
        return graph

    def _step(self, span: int) -> None:
        # of a slot that has ended the position may run against the end of the cache
        positions = self._positions.clamp(max=self._settings.max_length - 1)[:, None]
        self._cache.place(positions, span)
        logits = self._forward(self._tokens[:, None], positions, span)
        chosen = self._rules.choose(logits, slice(0, self._settings.max_num_seqs))
        self._tokens.copy_(chosen)
        self._positions.add_(1)
        places = self._counts.clamp(max=self._settings.max_length - 1)
        self._answers[self._rows, places] = chosen
        self._counts.add_(1)

    def _collect(self, running: dict[int, _Job]) -> Iterator[tuple[int, list[int]]]:
        """Yield the answers that have ended, and free their max_num_seqs."""
        counts = self._counts.tolist()
        answers = self._answers[:, : max(counts)].tolist()
        for slot, job in list(running.items()):
            ids = answers[slot][: min(counts[slot], job.limit)]
            end = next((place for place, token in enumerate(ids) if token in self._ends), None)
            ids = ids if end is None else ids[: end + 1]
            if self._goes_back(slot, job, ids) or (end is None and len(ids) < job.limit):
                continue
            del running[slot]
            # until another prompt comes, its steps look at a token or few
            self._positions[slot] = 0
            yield job.position, ids

    def _goes_back(self, slot: int, job: _Job, ids: list[int]) -> bool:
        """Take a slot back to the first token that may not be; tell whether there was one."""
        banned = self._find_banned(ids, job.allowed) if self._find_banned else None
        if banned is None:
            if len(ids) > job.allowed:
                job.allowed, job.refused = len(ids), []
            return False
        if banned > job.allowed:
            job.allowed, job.refused = banned, []
        job.refused.append(ids[banned])
        kept = ids[:banned]
        self._rules.start(slot, job.prompt_ids, kept, job.refused)
        # the token before is read once more, at its place: what follows it is chosen anew
        self._tokens[slot] = (kept or job.prompt_ids)[-1]
        self._positions[slot] = len(job.prompt_ids) + banned - 1
        self._counts[slot] = banned
        return True
