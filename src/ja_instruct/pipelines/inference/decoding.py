"""What greedy decoding may not say, and what it shall not say again: logits processors.

They work on any number of sequences, all of whose prompts end at the same column (padded on the
left). Both belong behind the processors of ``generate`` itself, where it puts those it is given.
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
        self._tokenizer = tokenizer
        self._words = tuple(words)
        self._prompt_columns = prompt_columns
        self._silent = frozenset(tokenizer.all_special_ids)
        # a token that is not silent adds a byte at least
        longest = max((len(word.encode("utf-8", "replace")) for word in words), default=0)
        self._tail_tokens = longest + BYTES_OF_A_CHARACTER

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
        tail = [token for token in answer if token not in self._silent][-self._tail_tokens :]
        return takewhile(partial(self.completes_a_word, tail), _best_first(best, scores))

    def completes_a_word(self, tail: list[int], token: int) -> bool:
        """Tell whether a banned word is in the text of ``tail`` with ``token`` behind it."""
        if token in self._silent:
            return False
        text = self._tokenizer.decode([*tail, token], skip_special_tokens=True)
        return any(word in text for word in self._words)


def _best_first(best: int, scores: torch.Tensor) -> Iterator[int]:
    """Yield the tokens from the most likely on; sorted only if ``best`` will not do."""
    yield best
    for token in scores.argsort(descending=True, stable=True).tolist():
        if token != best:
            yield token
