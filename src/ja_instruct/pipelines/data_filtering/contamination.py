"""Texts that contain an evaluation task or a part of one, which would inflate the model's score.

Two methods complement each other. The n-gram overlap of GPT-3 (Brown et al. 2020, appendix C:
13-grams of words, without punctuation and case, except those in more than ten training documents;
also used by lm-eval and NeMo Curator) finds copied parts. The share of a task's short n-grams, as
PaLM measures it (Chowdhery et al. 2022, section 8: 70 % of the 8-grams), finds tasks that were
edited throughout. Both count characters here, because Japanese is written without spaces.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any, NamedTuple

from ja_instruct.errors import InputError
from ja_instruct.text import letters_and_digits, split_ngrams

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# If one character in ten is edited, 59 % of the 5-grams remain (0.9^5), but only 43 % of the
# 8-grams.
SHORT_NGRAM_CHARS = 5
# Fewest 5-grams of a task that must be in a text (or all of a shorter task): half of the three of
# 伊勢神宮は何県 are in many texts about the shrine.
SHORT_NGRAMS_MIN = 8


class ContaminationMatch(NamedTuple):
    """The task that a text contains, and the characters that they share."""

    task_id: int | str
    matched: str


class _Reference(NamedTuple):
    """An input or an output of a task, without punctuation."""

    task_id: int | str
    letters: str
    short_ngrams: frozenset[str]


class ContaminationIndex:
    """The character n-grams of the evaluation tasks' inputs and reference outputs.

    A text is contaminated if it contains an n-gram of a task that is not a stock phrase, or the
    share ``share_min`` of the 5-grams of a task's input or output. An n-gram is a stock phrase if
    several tasks share it, or if more than ``stock_texts_max`` texts of the corpus contain it (see
    ``count_stock_phrases``). In the share, a 5-gram in n texts has the weight
    ``stock_texts_max / n``, at most 1: をリストアップしてください weighs next to nothing, yet a
    task that was copied into a thousand texts is found in all of them, since its 5-grams have equal
    weights.

    >>> task = {"task_id": 7, "input": "クマが海辺でアザラシと友達になる短編小説を書いてください。"}
    >>> index = ContaminationIndex([task], ngram_chars=15, share_min=0.5)
    >>> index.find("ネコが山でキツネと戦う短編小説を書いてください。")
    >>> index.find("宿題です。『クマが海辺で、アザラシと友達になる短編』を読んだ感想は？")
    ContaminationMatch(task_id=7, matched='クマが海辺でアザラシと友達になる短編')
    >>> index.find("クマが海岸でアザラシの友達になる短編小説を書いてください。")
    ContaminationMatch(task_id=7, matched='友達になる短編小説を書いてください')
    """

    def __init__(
        self,
        tasks: Iterable[Mapping[str, Any]],
        *,
        ngram_chars: int,
        share_min: float,
        stock_texts_max: int = 5,
    ) -> None:
        """Index tasks with ``task_id``, ``input`` and optional ``output``.

        Outputs shorter than ``ngram_chars`` are ignored, since they are facts that other texts may
        state, and so are inputs of fewer than 5 letters and digits. An n-gram consists of letters
        and digits; a word of English is about two characters of Japanese, so 13 words are about 25.
        GPT-3 used a ``stock_texts_max`` of 10, for millions of texts.

        Raises:
            InputError: There are no tasks, or a task lacks a ``task_id`` or has an ``input`` or
                ``output`` that is not a text.
        """
        self._ngram_chars = ngram_chars
        self._share_min = share_min
        self._stock_texts_max = stock_texts_max
        self._counts: Counter[str] = Counter()
        self._references: list[_Reference] = []
        #: n-gram: positions in _references of those that contain it
        self._long: defaultdict[str, list[int]] = defaultdict(list)
        self._short: defaultdict[str, list[int]] = defaultdict(list)
        for number, task in enumerate(tasks, start=1):
            _require_texts(task, number)
            self._add(task["task_id"], letters_and_digits(task["input"]))
            output = letters_and_digits(task.get("output") or "")
            if len(output) >= ngram_chars:
                self._add(task["task_id"], output)
        if not self._references:
            raise InputError(
                "'evaluation_tasks' has no tasks to compare the data with: fill it, or remove "
                "'contamination' from data_filtering.extra_rules"
            )

    def _add(self, task_id: int | str, letters: str) -> None:
        short = frozenset(split_ngrams(letters, SHORT_NGRAM_CHARS))
        position = len(self._references)
        self._references.append(_Reference(task_id, letters, short))
        for ngram in short:
            self._short[ngram].append(position)
        for ngram in set(split_ngrams(letters, self._ngram_chars)):
            self._long[ngram].append(position)

    def count_stock_phrases(self, texts: Iterable[str]) -> None:
        """Add the texts to the counts of those that contain each n-gram of the tasks.

        Count the whole corpus before calling ``find``: only the corpus tells a stock phrase from a
        copied task.
        """
        for text in texts:
            letters = letters_and_digits(text)
            self._counts.update(self._find_long(letters).keys())
            self._counts.update(self._find_short(letters))

    def find(self, text: str) -> ContaminationMatch | None:
        """Return the task that ``text`` contains and what they share, or ``None``."""
        letters = letters_and_digits(text)
        for ngram in self._find_long(letters):
            if not self._is_stock(ngram):
                return self._match(letters, self._long[ngram][0])
        shared = self._find_short(letters)
        times = Counter(position for ngram in shared for position in self._short[ngram])
        for position in sorted(times):
            ngrams = self._references[position].short_ngrams
            if times[position] < min(len(ngrams), SHORT_NGRAMS_MIN):
                continue
            if self._weigh(ngrams & shared) >= self._share_min * self._weigh(ngrams):
                return self._match(letters, position)
        return None

    def _find_long(self, letters: str) -> dict[str, None]:
        """Return the tasks' n-grams that are in a text, each once, in its order."""
        ngrams = split_ngrams(letters, self._ngram_chars)
        return dict.fromkeys(filter(self._long.__contains__, ngrams))

    def _find_short(self, letters: str) -> set[str]:
        """Return the tasks' 5-grams that are in a text."""
        return set(filter(self._short.__contains__, split_ngrams(letters, SHORT_NGRAM_CHARS)))

    def _weigh(self, short_ngrams: Iterable[str]) -> float:
        return sum(
            min(1.0, self._stock_texts_max / max(self._counts[ngram], 1)) for ngram in short_ngrams
        )

    def _is_stock(self, ngram: str) -> bool:
        task_ids = {self._references[position].task_id for position in self._long[ngram]}
        return len(task_ids) > 1 or self._counts[ngram] > self._stock_texts_max

    def _match(self, letters: str, position: int) -> ContaminationMatch:
        reference = self._references[position]
        blocks = SequenceMatcher(None, reference.letters, letters, autojunk=False)
        longest = blocks.find_longest_match()
        return ContaminationMatch(reference.task_id, reference.letters[longest.a :][: longest.size])


def _require_texts(task: Mapping[str, Any], number: int) -> None:
    if task.get("task_id") is None:
        raise InputError(
            f"'evaluation_tasks', record {number} has no 'task_id': give each task its own"
        )
    if not isinstance(task.get("input"), str) or not isinstance(task.get("output"), str | None):
        raise InputError(
            f"'evaluation_tasks', record {number} (task_id {task['task_id']!r}): 'input' must be a "
            f"text, and 'output' a text or left out"
        )
