"""Texts that hold an evaluation task or a piece of one, whose score would then measure memory.

Two methods join. The n-gram overlap of GPT-3 (Brown et al. 2020, appendix C: 13-grams of words,
without punctuation and case, except those that more than ten training documents hold; so also in
lm-eval and NeMo Curator) finds pieces. The share of a task's short n-grams, as PaLM measures it
(Chowdhery et al. 2022, section 8: 70 % of the 8-grams), finds tasks that were edited all over.
Japanese is written without spaces, so that both count characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any, NamedTuple

from ja_instruct.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_NO_LETTER = re.compile(r"[\W_]+")
# When one character in ten is edited, 59 % of the 5-grams are left (0.9^5), of 8-grams 43 %.
SHORT_NGRAM_CHARS = 5
# Of a short task at least so many must be there, or all: half of the three of 伊勢神宮は何県 are in
# many a text on the shrine.
SHORT_NGRAMS_MIN = 8


class ContaminationMatch(NamedTuple):
    """The task that a text holds, and the characters that they share."""

    task_id: Any
    matched: str


class _Field(NamedTuple):
    task_id: Any
    squeezed: str
    short_ngrams: frozenset[str]


def squeeze(text: str) -> str:
    """Return the letters and digits of ``text``, in NFKC and lower case.

    Another line break, quotation mark or full stop must not hide a copied task.

    >>> squeeze("次のSFを、１０冊 挙げて。")
    '次のsfを10冊挙げて'
    """
    return _NO_LETTER.sub("", unicodedata.normalize("NFKC", text).casefold())


class ContaminationIndex:
    """The character n-grams of the evaluation tasks, their inputs and their reference outputs.

    A text is contaminated when it holds an n-gram of a task that is no stock phrase, or the share
    ``share_min`` of the 5-grams of a task's input or output. An n-gram is a stock phrase when
    several tasks share it, or when the corpus, shown to ``count_stock_phrases``, holds it in more
    than ``stock_texts_max`` texts. In the share, a 5-gram that n texts hold weighs
    ``stock_texts_max / n``, at most 1: をリストアップしてください weighs next to nothing, yet a
    task that was copied into a thousand texts is found in all of them, since its 5-grams weigh the
    same.

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
        """Index the inputs, and the outputs where there are any.

        Args:
            tasks: Records with ``task_id``, ``input`` and optional ``output``. Outputs shorter than
                ``ngram_chars`` are left out: such answers are facts that other texts may state.
                So are inputs of fewer than 5 letters and digits.
            ngram_chars: Length of an n-gram in letters and digits, 10 or more. A word of English is
                about two characters of Japanese, so that 13 words are some 25.
            share_min: Above 0, 1 at most.
            stock_texts_max: 1 or more. GPT-3 took 10, among millions of texts.

        Raises:
            InputError: When there is no task, a task has no ``task_id``, no text as ``input`` or no
                text as its ``output``, or a parameter is out of its bounds.
        """
        _check_bounds(ngram_chars, share_min, stock_texts_max)
        self._ngram_chars = ngram_chars
        self._share_min = share_min
        self._stock_texts_max = stock_texts_max
        self._counts: Counter[str] = Counter()
        self._fields: list[_Field] = []
        #: of each n-gram the positions in _fields of those that hold it
        self._long: defaultdict[str, list[int]] = defaultdict(list)
        self._short: defaultdict[str, list[int]] = defaultdict(list)
        for number, task in enumerate(tasks, start=1):
            _require_texts(task, number)
            self._add(task["task_id"], squeeze(task["input"]))
            output = squeeze(task.get("output") or "")
            if len(output) >= ngram_chars:
                self._add(task["task_id"], output)
        if not self._fields:
            raise InputError(
                "'tasks' holds no task to compare the data with: fill it, or switch the rule off"
            )

    def _add(self, task_id: Any, squeezed: str) -> None:
        short = frozenset(_split(squeezed, SHORT_NGRAM_CHARS))
        position = len(self._fields)
        self._fields.append(_Field(task_id, squeezed, short))
        for ngram in short:
            self._short[ngram].append(position)
        for ngram in set(_split(squeezed, self._ngram_chars)):
            self._long[ngram].append(position)

    def count_stock_phrases(self, texts: Iterable[str]) -> None:
        """Count the texts that hold each n-gram of the tasks; adds to what was counted before.

        Show it the corpus before ``find`` is asked: only what the corpus holds tells a phrase from
        a copied task.
        """
        for text in texts:
            squeezed = squeeze(text)
            self._counts.update(self._find_long(squeezed).keys())
            self._counts.update(self._find_short(squeezed))

    def find(self, text: str) -> ContaminationMatch | None:
        """Return the task that speaks against ``text`` and what they share, or ``None``."""
        squeezed = squeeze(text)
        for ngram in self._find_long(squeezed):
            if not self._is_stock(ngram):
                return self._match(squeezed, self._long[ngram][0])
        shared = self._find_short(squeezed)
        times = Counter(position for ngram in shared for position in self._short[ngram])
        for position in sorted(times):
            ngrams = self._fields[position].short_ngrams
            if times[position] < min(len(ngrams), SHORT_NGRAMS_MIN):
                continue
            if self._weigh(ngrams & shared) >= self._share_min * self._weigh(ngrams):
                return self._match(squeezed, position)
        return None

    def _find_long(self, squeezed: str) -> dict[str, None]:
        """Return the n-grams of the tasks that are in a text, each once, in its order."""
        ngrams = _split(squeezed, self._ngram_chars)
        return dict.fromkeys(filter(self._long.__contains__, ngrams))

    def _find_short(self, squeezed: str) -> set[str]:
        """Return the 5-grams of the tasks that are in a text."""
        return set(filter(self._short.__contains__, _split(squeezed, SHORT_NGRAM_CHARS)))

    def _weigh(self, short_ngrams: Iterable[str]) -> float:
        return sum(
            min(1.0, self._stock_texts_max / max(self._counts[ngram], 1)) for ngram in short_ngrams
        )

    def _is_stock(self, ngram: str) -> bool:
        task_ids = {self._fields[position].task_id for position in self._long[ngram]}
        return len(task_ids) > 1 or self._counts[ngram] > self._stock_texts_max

    def _match(self, squeezed: str, position: int) -> ContaminationMatch:
        field = self._fields[position]
        blocks = SequenceMatcher(None, field.squeezed, squeezed, autojunk=False)
        longest = blocks.find_longest_match()
        return ContaminationMatch(field.task_id, field.squeezed[longest.a :][: longest.size])


def _split(squeezed: str, chars: int) -> list[str]:
    return [squeezed[start : start + chars] for start in range(len(squeezed) - chars + 1)]


def _check_bounds(ngram_chars: int, share_min: float, stock_texts_max: int) -> None:
    if ngram_chars < 10:
        raise InputError(
            f"ngram_chars is {ngram_chars}: set it to 10 or more, such as 25; shorter n-grams are "
            f"in texts that have nothing in common"
        )
    if not 0 < share_min <= 1:
        raise InputError(f"share_min is {share_min}: set it above 0 and to 1 at most, such as 0.5")
    if stock_texts_max < 1:
        raise InputError(f"stock_texts_max is {stock_texts_max}: set it to 1 or more, such as 5")


def _require_texts(task: Mapping[str, Any], number: int) -> None:
    if task.get("task_id") is None:
        raise InputError(f"'tasks', record {number} has no 'task_id': give each task its own")
    if not isinstance(task.get("input"), str) or not isinstance(task.get("output"), str | None):
        raise InputError(
            f"'tasks', record {number} (task_id {task['task_id']!r}): 'input' must be a text, and "
            f"'output' a text or left out"
        )
