"""Greedy choice of the next token under the recipe's rules, for many sequences at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Tokens that may be refused at one place, one after the other
MAX_REFUSED = 1024


class Sampler:
    """Repetition penalty and banned words, as transformers has them, in a few tensors.

    The state of each slot is kept on the device, at fixed addresses: which tokens it has seen, and
    its last few. Choosing needs no word with the host. Of the scores, a quarter of a million for
    each sequence with some vocabularies, only those of seen and banned tokens are touched.
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
            max_num_seqs: Sequences at a time.
            max_length: Tokens of a prompt with its answer.
            repetition_penalty: Divides positive scores of seen tokens and multiplies negative
                ones (CTRL, arXiv:1909.05858); 1 changes nothing.
            bad_words_ids: Token sequences of which the last token is never chosen after the others.
            penalized_prompt: Whether the prompt's tokens count as seen.
            exempt_ids: Tokens that are never penalized.
            device: Where the logits are.
        """
        self._penalty = repetition_penalty
        self._penalized_prompt = penalized_prompt
        # What a slot has seen; behind it the first again, so that no place stands for another
        # token. Nothing is counted where nothing has been seen.
        self._seen = torch.zeros((max_num_seqs, max_length), dtype=torch.long, device=device)
        self._counts = torch.zeros(max_num_seqs, dtype=torch.long, device=device)
        self._places = torch.arange(max_length, device=device)
        self._penalized = torch.ones(vocab_size, dtype=torch.bool, device=device)
        self._penalized[torch.tensor(list(exempt_ids), dtype=torch.long, device=device)] = False
        words = [list(ids) for ids in bad_words_ids]
        self._reach = max((len(ids) - 1 for ids in words), default=0) or 1
        # -1 is no token, and matches any: shorter words leave the first places open
        self._heads = torch.tensor(
            [[-1] * (self._reach - len(ids) + 1) + ids[:-1] for ids in words]
            or [[-2] * self._reach],
            device=device,
        )
        self._tails = torch.tensor([ids[-1] for ids in words] or [0], device=device)
        self._last = torch.full((max_num_seqs, self._reach), -1, dtype=torch.long, device=device)
        # tokens, and the most that each may score
        self._refused = torch.zeros((max_num_seqs, MAX_REFUSED), dtype=torch.long, device=device)
        self._most = torch.full((max_num_seqs, MAX_REFUSED), torch.inf, device=device)
        # as tensors, since a number would be copied from the host
        self._never = torch.tensor(-torch.inf, device=device)
        self._always = torch.tensor(torch.inf, device=device)

    def start(
        self,
        slot: int,
        prompt_ids: Sequence[int],
        answer_ids: Sequence[int] = (),
        refused: Sequence[int] = (),
    ) -> None:
        """Forget what a slot has seen and take up a prompt, and what has been answered already.

        Args:
            slot: Which.
            prompt_ids: The prompt's tokens.
            answer_ids: The answer's so far.
            refused: Tokens that must not come next; the one after may be any again.

        Raises:
            RuntimeError: More than ``MAX_REFUSED`` tokens are refused.
        """
        if len(refused) > MAX_REFUSED:
            raise RuntimeError(
                f"behind {len(answer_ids)} tokens of an answer {len(refused)} others are banned, "
                f"more than the {MAX_REFUSED} that can be tried: ban less"
            )
        seen = list(dict.fromkeys([*(prompt_ids if self._penalized_prompt else ()), *answer_ids]))
        self._fill(self._seen, slot, seen)
        self._counts[slot] = len(seen)
        tail = [*prompt_ids[-self._reach :], *answer_ids[-self._reach :]][-self._reach :]
        padded = [-1] * (self._reach - len(tail)) + tail
        self._last[slot] = torch.tensor(padded, device=self._last.device)
        self._fill(self._refused, slot, refused)
        self._most[slot] = -torch.inf if refused else torch.inf

    def _fill(self, tokens: torch.Tensor, slot: int, ids: Sequence[int]) -> None:
        """Write tokens to a slot's places, the first of them to those that are left."""
        first = ids[0] if ids else 0
        whole = [*ids, *[first] * (tokens.shape[1] - len(ids))]
        tokens[slot] = torch.tensor(whole, device=tokens.device)

    def state(self) -> list[torch.Tensor]:
        """Return a copy of what is known of the max_num_seqs."""
        return [tensor.clone() for tensor in self._changing()]

    def restore(self, state: Sequence[torch.Tensor]) -> None:
        """Take the max_num_seqs back to a ``state``."""
        for tensor, before in zip(self._changing(), state, strict=True):
            tensor.copy_(before)

    def _changing(self) -> list[torch.Tensor]:
        return [self._seen, self._counts, self._last, self._refused, self._most]

    def choose(self, logits: torch.Tensor, max_num_seqs: slice) -> torch.Tensor:
        """Return the best allowed token of each sequence and note it as seen.

        Args:
            logits: (sequences, vocabulary), float32; changed in place.
            max_num_seqs: Which of the max_num_seqs these are.
        """
        if self._penalty != 1:
            self._penalize(logits, max_num_seqs)
        last, most = self._last[max_num_seqs], self._most[max_num_seqs]
        # (sequences, words): the last tokens are all but the last of the word
        matched = ((last[:, None] == self._heads) | (self._heads == -1)).all(dim=-1)
        banned = torch.where(matched, self._never, self._always)
        logits.scatter_reduce_(1, self._tails.expand(len(logits), -1), banned, "amin")
        logits.scatter_reduce_(1, self._refused[max_num_seqs], most, "amin")
        most.fill_(torch.inf)
        chosen = logits.argmax(dim=-1)
        self._note(chosen, max_num_seqs)
        last.copy_(torch.cat([last[:, 1:], chosen[:, None]], dim=1))
        return chosen

    def _penalize(self, logits: torch.Tensor, max_num_seqs: slice) -> None:
        seen = self._seen[max_num_seqs]
        scores = logits.gather(1, seen)
        penalized = torch.where(scores < 0, scores * self._penalty, scores / self._penalty)
        counts = self._penalized[seen] & (self._counts[max_num_seqs] > 0)[:, None]
        logits.scatter_(1, seen, torch.where(counts, penalized, scores))

    def _note(self, chosen: torch.Tensor, max_num_seqs: slice) -> None:
        seen, counts = self._seen[max_num_seqs], self._counts[max_num_seqs]
        # the first token takes all places
        here = (self._places == counts[:, None]) | (counts == 0)[:, None]
        seen.copy_(torch.where(here, chosen[:, None], seen))
        counts.add_(1)
