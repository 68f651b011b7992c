"""Greedy choice of the next token under the recipe's rules, for many sequences at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Tokens that can be refused at one place, one after the other
MAX_REFUSED = 1024


class Sampler:
    """Repetition penalty and banned words, as transformers defines them, on a few tensors.

    The state of each row (the tokens that it has seen, and its last few) stays on the device at
    fixed addresses, and choosing needs no host synchronization. Only the logits of seen and banned
    tokens are touched, of up to a quarter of a million per sequence.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        max_num_seqs: int,
        max_length: int,
        repetition_penalty: float,
        bad_words_ids: Sequence[Sequence[int]],
        penalized_prompt: bool,
        exempt_ids: Sequence[int],
        device: torch.device,
    ) -> None:
        """Prepare the rules.

        Args:
            vocab_size: Columns of the logits.
            max_num_seqs: Batch size.
            max_length: Tokens of a prompt with its answer.
            repetition_penalty: As in CTRL (arXiv:1909.05858); 1 changes nothing.
            bad_words_ids: Token sequences whose last token is never chosen after the others.
            penalized_prompt: Whether the prompt's tokens count as seen.
            exempt_ids: Tokens that are never penalized.
            device: Where the logits are.
        """
        self._penalty = repetition_penalty
        self._penalized_prompt = penalized_prompt
        # The tokens that a row has seen, filled up with the first of them, so that every place
        # holds a seen token. A row that has seen none is masked by its count.
        self._seen = torch.zeros((max_num_seqs, max_length), dtype=torch.long, device=device)
        self._counts = torch.zeros(max_num_seqs, dtype=torch.long, device=device)
        self._places = torch.arange(max_length, device=device)
        self._penalized = torch.ones(vocab_size, dtype=torch.bool, device=device)
        self._penalized[torch.tensor(list(exempt_ids), dtype=torch.long, device=device)] = False
        words = [list(ids) for ids in bad_words_ids]
        self._reach = max((len(ids) - 1 for ids in words), default=0) or 1
        # Shorter words are padded on the left with -1, which matches any token; -2 matches none.
        self._heads = torch.tensor(
            [[-1] * (self._reach - len(ids) + 1) + ids[:-1] for ids in words]
            or [[-2] * self._reach],
            device=device,
        )
        self._tails = torch.tensor([ids[-1] for ids in words] or [0], device=device)
        self._last = torch.full((max_num_seqs, self._reach), -1, dtype=torch.long, device=device)
        # refused tokens, and the upper bound of their logits
        self._refused = torch.zeros((max_num_seqs, MAX_REFUSED), dtype=torch.long, device=device)
        self._bounds = torch.full((max_num_seqs, MAX_REFUSED), torch.inf, device=device)
        # as tensors, because a number would be copied from the host
        self._never = torch.tensor(-torch.inf, device=device)
        self._always = torch.tensor(torch.inf, device=device)

    def start(
        self,
        row: int,
        prompt_ids: Sequence[int],
        answer_ids: Sequence[int] = (),
        refused: Sequence[int] = (),
    ) -> None:
        """Reset a row to a prompt and the beginning of its answer.

        Refused tokens must not come next; they are allowed again after that.

        Raises:
            RuntimeError: More than ``MAX_REFUSED`` tokens are refused.
        """
        if len(refused) > MAX_REFUSED:
            raise RuntimeError(
                f"{len(refused)} tokens are banned after {len(answer_ids)} tokens of an answer, "
                f"more than the {MAX_REFUSED} that can be tried: ban less"
            )
        seen = list(dict.fromkeys([*(prompt_ids if self._penalized_prompt else ()), *answer_ids]))
        self._fill(self._seen, row, seen)
        self._counts[row] = len(seen)
        tail = [*prompt_ids[-self._reach :], *answer_ids[-self._reach :]][-self._reach :]
        padded = [-1] * (self._reach - len(tail)) + tail
        self._last[row] = torch.tensor(padded, device=self._last.device)
        self._fill(self._refused, row, refused)
        self._bounds[row] = -torch.inf if refused else torch.inf

    def _fill(self, tokens: torch.Tensor, row: int, ids: Sequence[int]) -> None:
        """Write tokens to a row, and the first of them to the places that are left."""
        first = ids[0] if ids else 0
        whole = [*ids, *[first] * (tokens.shape[1] - len(ids))]
        tokens[row] = torch.tensor(whole, device=tokens.device)

    def state(self) -> list[torch.Tensor]:
        """Return a copy of the state of all rows."""
        return [tensor.clone() for tensor in self._changing()]

    def restore(self, state: Sequence[torch.Tensor]) -> None:
        """Reset all rows to a ``state``."""
        for tensor, before in zip(self._changing(), state, strict=True):
            tensor.copy_(before)

    def _changing(self) -> list[torch.Tensor]:
        return [self._seen, self._counts, self._last, self._refused, self._bounds]

    def choose(self, logits: torch.Tensor, rows: slice) -> torch.Tensor:
        """Return the best allowed token of each of some rows, (rows,), and count it as seen.

        The logits, (rows, vocabulary) in float32, are changed in place.
        """
        if self._penalty != 1:
            self._penalize(logits, rows)
        last, bounds = self._last[rows], self._bounds[rows]
        # (sequences, words): whether the last tokens are all but the last of the word
        matched = ((last[:, None] == self._heads) | (self._heads == -1)).all(dim=-1)
        banned = torch.where(matched, self._never, self._always)
        logits.scatter_reduce_(1, self._tails.expand(len(logits), -1), banned, "amin")
        logits.scatter_reduce_(1, self._refused[rows], bounds, "amin")
        bounds.fill_(torch.inf)
        chosen = logits.argmax(dim=-1)
        self._note(chosen, rows)
        last.copy_(torch.cat([last[:, 1:], chosen[:, None]], dim=1))
        return chosen

    def _penalize(self, logits: torch.Tensor, rows: slice) -> None:
        seen = self._seen[rows]
        scores = logits.gather(1, seen)
        penalized = torch.where(scores < 0, scores * self._penalty, scores / self._penalty)
        counts = self._penalized[seen] & (self._counts[rows] > 0)[:, None]
        logits.scatter_(1, seen, torch.where(counts, penalized, scores))

    def _note(self, chosen: torch.Tensor, rows: slice) -> None:
        seen, counts = self._seen[rows], self._counts[rows]
        # a row's first token fills all its places
        here = (self._places == counts[:, None]) | (counts == 0)[:, None]
        seen.copy_(torch.where(here, chosen[:, None], seen))
        counts.add_(1)
