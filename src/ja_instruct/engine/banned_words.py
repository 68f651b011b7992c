"""What greedy decoding may not say, and what it shall not say again.

The logits processors work on any number of sequences, all of whose prompts end at the same column
(padded on the left). Both belong behind the processors of ``generate`` itself, where it puts those
it is given.
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

# The last tokens before a banned word may hold the first bytes of a character of up to four
BYTES_OF_A_CHARACTER = 4
# What decoding puts in the place of bytes that are no character
UNDECODABLE = "\N{REPLACEMENT CHARACTER}"


class SparingPenalty(RepetitionPenaltyLogitsProcessor):
    """CTRL's repetition penalty (arXiv:1909.05858) that leaves some tokens or the prompt alone."""

    def __init__(self, penalty: float, ignored_columns: int, spared: Collection[int]) -> None:
        """Set what is penalized.

        Args:
            penalty: Divides positive logits, multiplies negative ones.
            ignored_columns: Tokens at the beginning, padding included, that do not count.
            spared: Ids of tokens that are never penalized.
        """
        super().__init__(penalty, prompt_ignore_length=ignored_columns)
        self._spared = sorted(spared)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return new scores of shape (sequences, vocabulary)."""
        kept = scores[:, self._spared].clone()
        penalized: torch.FloatTensor = super().__call__(input_ids, scores)
        penalized[:, self._spared] = kept
        return penalized


class BannedWords:
    """Words that no answer may hold, whichever tokens spell them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> None:
        """Take the words, none of them empty, and the model's tokenizer."""
        self._tokenizer = tokenizer
        self._words = tuple(words)
        self._silent = frozenset(tokenizer.all_special_ids)
        # a token that is not silent adds a byte at least
        longest = max((len(word.encode("utf-8", "replace")) for word in words), default=0)
        self._tail_tokens = longest + BYTES_OF_A_CHARACTER
        # Else a text may hold a word that one token more hides: whole characters stay as they are,
        # but bytes that are none, and blanks that are cleaned up, do not
        self._stays = not (
            getattr(tokenizer, "clean_up_tokenization_spaces", False)
            or any(UNDECODABLE in word for word in words)
        )

    def tail_of(self, answer: Sequence[int]) -> list[int]:
        """Return the last tokens of an answer that can be a part of a word with the next one."""
        tail: list[int] = []
        for token in reversed(answer):
            if len(tail) == self._tail_tokens:
                break
            if token not in self._silent:
                tail.append(token)
        return tail[::-1]

    def are_completed(self, tail: Sequence[int], token: int) -> bool:
        """Tell whether a banned word is in the text of ``tail`` with ``token`` behind it."""
        return token not in self._silent and self._are_in(self._decode([*tail, token]))

    def find_banned(self, answer: Sequence[int], start: int) -> int | None:
        """Return the index of the first token that completes a banned word; None if none does.

        The new tokens are decoded together, and one after the other only where that tells too
        little.

        Args:
            answer: Token ids of an answer so far.
            start: The tokens before are known to complete none.
        """
        tail = self.tail_of(answer[:start])
        new = [token for token in answer[start:] if token not in self._silent]
        text = self._decode([*tail, *new])
        if self._stays and UNDECODABLE not in text and not self._are_in(text):
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
    """Bans the tokens whose text, behind the answer so far, completes a banned word.

    Of each sequence only the most likely tokens are tried, until one may be said: that is exact for
    greedy decoding, which looks at nothing else, and costs a short decoding a step. A word is found
    whichever tokens spell it, and if its beginning came long before.
    """

    supports_continuous_batching = False

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, words: Sequence[str], prompt_columns: int
    ) -> None:
        """Take the words.

        Args:
            tokenizer: The model's.
            words: What no answer may hold; not empty ones.
            prompt_columns: Tokens of the prompt, padding included; only what follows is looked at.
        """
        self._words = BannedWords(tokenizer, words)
        self._prompt_columns = prompt_columns

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return scores of shape (sequences, vocabulary) whose highest may be said."""
        answers: list[list[int]] = input_ids[:, self._prompt_columns :].tolist()
        # nearly always the most likely token may be said: one transfer for all rows
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
    """Yield the tokens from the most likely on; sorted only if ``best`` will not do."""
    yield best
    for token in scores.argsort(descending=True, stable=True).tolist():
        if token != best:
            yield token
