"""Greedy choice of the next token under the recipe's rules, for many sequences at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class TokenRules:
    """Repetition penalty and banned words, as transformers has them, in a few tensors.

    The state of each slot is kept on the device, at fixed addresses: which tokens it has seen, and
    its last few. Choosing needs no word with the host.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        slots: int,
        repetition_penalty: float,
        bad_words_ids: Sequence[Sequence[int]],
        penalized_prompt: bool,
        exempt_ids: Sequence[int],
        device: torch.device,
    ) -> None:
        """Prepare the rules.

        Args:
            vocab_size: Columns of the logits.
            slots: Sequences at a time.
            repetition_penalty: Divides positive scores of seen tokens and multiplies negative
                ones (CTRL, arXiv:1909.05858); 1 changes nothing.
            bad_words_ids: Token sequences of which the last token is never chosen after the others.
            penalized_prompt: Whether the prompt's tokens count as seen.
            exempt_ids: Tokens that are never penalized.
            device: Where the logits are.
        """
        self._penalty = repetition_penalty
        self._penalized_prompt = penalized_prompt
        self._seen = torch.zeros((slots, vocab_size), dtype=torch.bool, device=device)
        self._penalized = torch.ones(vocab_size, dtype=torch.bool, device=device)
        self._penalized[torch.tensor(list(exempt_ids), dtype=torch.long, device=device)] = False
        self._banned = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        single = [ids[0] for ids in bad_words_ids if len(ids) == 1]
        self._banned[torch.tensor(single, dtype=torch.long, device=device)] = True
        longer = [list(ids) for ids in bad_words_ids if len(ids) > 1]
        self._reach = max((len(ids) - 1 for ids in longer), default=1)
        # -1 is no token, and matches any: shorter words leave the first places open
        self._heads = torch.tensor(
            [[-1] * (self._reach - len(ids) + 1) + ids[:-1] for ids in longer]
            or [[-2] * self._reach],
            device=device,
        )
        self._tails = torch.tensor([ids[-1] for ids in longer] or [0], device=device)
        self._last = torch.full((slots, self._reach), -1, dtype=torch.long, device=device)
        self._refused = torch.zeros_like(self._seen)

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
        """
        self._seen[slot] = False
        self._mark(self._seen, slot, [*(prompt_ids if self._penalized_prompt else ()), *answer_ids])
        tail = [*prompt_ids[-self._reach :], *answer_ids[-self._reach :]][-self._reach :]
        padded = [-1] * (self._reach - len(tail)) + tail
        self._last[slot] = torch.tensor(padded, device=self._last.device)
        self._refused[slot] = False
        self._mark(self._refused, slot, refused)

    def _mark(self, marks: torch.Tensor, slot: int, ids: Sequence[int]) -> None:
        marks[slot, torch.tensor(list(ids), dtype=torch.long, device=marks.device)] = True

    def state(self) -> list[torch.Tensor]:
        """Return a copy of what is known of the slots."""
        return [tensor.clone() for tensor in (self._seen, self._last, self._refused)]

    def restore(self, state: Sequence[torch.Tensor]) -> None:
        """Take the slots back to a ``state``."""
        for tensor, before in zip((self._seen, self._last, self._refused), state, strict=True):
            tensor.copy_(before)

    def choose(self, logits: torch.Tensor, slots: slice) -> torch.Tensor:
        """Return the best allowed token of each sequence and note it as seen.

        Args:
            logits: (sequences, vocabulary), float32; changed in place.
            slots: Which of the slots these are.
        """
        seen, last, refused = self._seen[slots], self._last[slots], self._refused[slots]
        if self._penalty != 1:
            counted = seen & self._penalized
            penalized = torch.where(logits < 0, logits * self._penalty, logits / self._penalty)
            logits = torch.where(counted, penalized, logits)
        logits = logits.masked_fill(self._banned, -torch.inf)
        open_place = self._heads == -1
        # (sequences, words): the last tokens are all but the last of the word
        matched = ((last[:, None] == self._heads) | open_place).all(dim=-1)
        ends = torch.zeros(logits.shape, dtype=torch.int32, device=logits.device)
        ends.scatter_add_(1, self._tails.expand(len(logits), -1), matched.int())
        chosen = logits.masked_fill((ends > 0) | refused, -torch.inf).argmax(dim=-1)
        refused.zero_()
        seen.scatter_(1, chosen[:, None], True)
        last.copy_(torch.cat([last[:, 1:], chosen[:, None]], dim=1))
        return chosen
