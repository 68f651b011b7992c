"""Logits processors for penalties and bans that transformers does not have.

The processors work on any number of sequences whose prompts all end at the same column, because
they are padded on the left. They must run after the processors of ``generate`` itself, where
``logits_processor`` puts them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessor, RepetitionPenaltyLogitsProcessor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The last tokens before a banned word can hold the first bytes of a character of up to four
BYTES_OF_A_CHARACTER = 4
# What decoding writes for bytes that are not a character
UNDECODABLE = "\N{REPLACEMENT CHARACTER}"


class SparingPenalty(RepetitionPenaltyLogitsProcessor):
    """CTRL's repetition penalty (arXiv:1909.05858) with exempt tokens, or without the prompt."""

    def __init__(self, penalty: float, ignored_columns: int, spared: Collection[int]) -> None:
        """Ignore the first columns, including padding, and never penalize the spared token ids."""
        super().__init__(penalty, prompt_ignore_length=ignored_columns)
        self._spared = sorted(spared)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return new scores of shape (sequences, vocabulary)."""
        kept = scores[:, self._spared].clone()
        penalized: torch.FloatTensor = super().__call__(input_ids, scores)
        penalized[:, self._spared] = kept
        return penalized


class BannedWords:
    """Words that no answer may contain, however they are tokenized."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> None:
        """Use the model's tokenizer; no word may be empty."""
        self._tokenizer = tokenizer
        self._words = tuple(words)
        self._silent = frozenset(tokenizer.all_special_ids)
        # each token that is not silent adds at least one byte
        longest = max((len(word.encode("utf-8", "replace")) for word in words), default=0)
        self._tail_tokens = longest + BYTES_OF_A_CHARACTER
        # Otherwise the next token can change the text before it, by completing a character or by
        # a cleaned-up space, and so hide a word that an earlier text contained.
        self._is_append_only = not (
            getattr(tokenizer, "clean_up_tokenization_spaces", False)
            or any(UNDECODABLE in word for word in words)
        )

    def tail_of(self, answer: Sequence[int]) -> list[int]:
        """Return the last tokens of an answer that, with the next one, can be part of a word."""
        tail: list[int] = []
        for token in reversed(answer):
            if len(tail) == self._tail_tokens:
                break
            if token not in self._silent:
                tail.append(token)
        return tail[::-1]

    def are_completed(self, tail: Sequence[int], token: int) -> bool:
        """Return whether the text of ``tail`` followed by ``token`` contains a banned word."""
        return token not in self._silent and self._are_in(self._decode([*tail, token]))

    def find_banned(self, answer: Sequence[int], start: int) -> int | None:
        """Return the index of the first token that completes a banned word; None if none does.

        The tokens before ``start`` are known to complete none. All others are decoded together; one
        after the other only if that text is not enough.
        """
        tail = self.tail_of(answer[:start])
        new = [token for token in answer[start:] if token not in self._silent]
        text = self._decode([*tail, *new])
        if self._is_append_only and UNDECODABLE not in text and not self._are_in(text):
            return None
        return next(
            (
                index
                for index in range(start, len(answer))
                if self.are_completed(self.tail_of(answer[:index]), answer[index])
            ),
            None,
        )

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _are_in(self, text: str) -> bool:
        return any(word in text for word in self._words)


class BannedText(LogitsProcessor):
    """Bans the tokens whose text, appended to the answer so far, completes a banned word.

    In each sequence the most likely tokens are tried until one is allowed. That is exact for greedy
    decoding, which looks only at the best token, and costs one short decoding per step.
    """

    supports_continuous_batching = False

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, words: Sequence[str], prompt_columns: int
    ) -> None:
        """Ban words from the columns after those of the prompt and its padding."""
        self._words = BannedWords(tokenizer, words)
        self._prompt_columns = prompt_columns

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return scores of shape (sequences, vocabulary) whose best token is allowed."""
        answers: list[list[int]] = input_ids[:, self._prompt_columns :].tolist()
        # the most likely token is nearly always allowed: one transfer for all rows
        best: list[int] = scores.argmax(dim=-1).tolist()
        banned = [
            (row, token)
            for row, (answer, first) in enumerate(zip(answers, best, strict=True))
            for token in self._banned_before_the_first(answer, first, scores[row])
        ]
        if not banned:
            return scores
        rows, tokens = zip(*banned, strict=True)
        allowed: torch.FloatTensor = scores.clone()  # type: ignore[assignment]
        allowed[list(rows), list(tokens)] = float("-inf")
        return allowed

    def _banned_before_the_first(
        self, answer: list[int], best: int, scores: torch.Tensor
    ) -> Iterator[int]:
        tail = self._words.tail_of(answer)
        return takewhile(partial(self._words.are_completed, tail), _best_first(best, scores))


def _best_first(best: int, scores: torch.Tensor) -> Iterator[int]:
    """Yield the tokens by decreasing score; they are sorted only after the first one."""
    yield best
    for token in scores.argsort(descending=True, stable=True).tolist():
        if token != best:
            yield token
