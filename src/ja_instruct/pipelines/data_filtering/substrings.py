"""Many texts and characters looked for at once: Aho-Corasick automata over UTF-8.

A text of UTF-8 is found in the bytes of another exactly where it stands in its characters.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ja_instruct.pipelines.data_filtering.batches import FIELDS
from ja_instruct.pipelines.data_filtering.violations import RULES, Violations, make_violations

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import numpy.typing as npt
    from ahocorasick_rs import BytesAhoCorasick

    from ja_instruct.pipelines.data_filtering.batches import PairBatch, Texts

#: A deterministic automaton is twice as fast as the other kind, and takes about 1 kB a pattern.
PATTERNS_MAX_OF_DFA = 30_000

#: Rules that look at the instruction alone.
INSTRUCTION_ONLY = {"banned_instruction_substring"}


@dataclass(frozen=True)
class Banned:
    """Texts that must not stand in a pair, and the automaton that finds them all in one pass.

    Attributes:
        texts: What to find.
        rules: The rule that bans each, as a position in ``RULES``, shape (texts,).
        automaton: None when there is nothing to find.
    """

    texts: tuple[str, ...]
    rules: npt.NDArray[np.int64]
    automaton: BytesAhoCorasick | None

    @classmethod
    def build(cls, lists: Mapping[str, Collection[str]]) -> Banned:
        """Build the automaton from the texts that each rule bans."""
        from ahocorasick_rs import BytesAhoCorasick, Implementation

        texts = tuple(text for banned in lists.values() for text in banned)
        rules = [RULES.index(rule) for rule, banned in lists.items() for _ in banned]
        few = len(texts) <= PATTERNS_MAX_OF_DFA
        kind = Implementation.DFA if few else Implementation.ContiguousNFA
        encoded = [text.encode() for text in texts]
        automaton = BytesAhoCorasick(encoded, implementation=kind) if texts else None
        return cls(texts, np.array(rules, np.int64), automaton)

    def find(self, texts: Texts) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return row and pattern of every match, overlapping ones too, as they stand in the texts.

        A pattern is named once a text, where it stands first.
        """
        none = np.empty(0, np.int64)
        if self.automaton is None or not len(texts.data):
            return none, none
        found = self.automaton.find_matches_as_indexes(texts.data, overlapping=True)
        if not found:
            return none, none
        pattern, start, end = np.array(found, np.int64).T
        rows = texts.rows_at(start)
        # the texts follow each other without a gap, so a match may run over an end
        inside = end <= texts.offsets[rows + 1]
        order = np.flatnonzero(inside)[np.argsort(start[inside], kind="stable")]
        keys = rows[order] * len(self.texts) + pattern[order]
        order = order[np.sort(np.unique(keys, return_index=True)[1])]
        return rows[order], pattern[order]


def find_banned(batch: PairBatch, banned: Banned) -> list[Violations]:
    """Find every banned text in each pair, each once a field.

    >>> from ja_instruct.pipelines.data_filtering.batches import make_batch
    >>> banned = Banned.build({"banned_substring": ["翻訳"], "rare_character": ["㌍"]})
    >>> batch = make_batch([("見頃は。", "四月です。"), ("翻訳して。", "四㌍月です。")])
    >>> for part in find_banned(batch, banned):
    ...     for violation in part:
    ...         print(violation)
    Violation(row=1, rule='banned_substring', field='instruction', matched='翻訳')
    Violation(row=1, rule='rare_character', field='response', matched='㌍')
    """
    parts = []
    elsewhere = [RULES.index(rule) for rule in INSTRUCTION_ONLY]
    for field, texts in enumerate(batch.fields):
        started = time.perf_counter()
        rows, patterns = banned.find(texts)
        rules = banned.rules[patterns]
        if FIELDS[field] != "instruction":
            asked = ~np.isin(rules, elsewhere)
            rows, patterns, rules = rows[asked], patterns[asked], rules[asked]
        matched = [banned.texts[pattern] for pattern in patterns.tolist()]
        seconds = {"banned texts and characters": time.perf_counter() - started}
        parts.append(make_violations(rows + batch.start, rules, field, matched, seconds))
    return parts


@dataclass(frozen=True)
class Candidates:
    """Finds the texts that may hold one of some others, in a quarter of the time of ``Banned``.

    Matches that do not overlap are found by the processor's vector instructions; what they hide
    lies in the same texts.
    """

    automaton: BytesAhoCorasick | None

    @classmethod
    def build(cls, wanted: Collection[str]) -> Candidates:
        """Build the automaton."""
        from ahocorasick_rs import BytesAhoCorasick, Implementation, MatchKind

        if not wanted:
            return cls(None)
        encoded = [text.encode() for text in wanted]
        kind, implementation = MatchKind.LeftmostLongest, Implementation.DFA
        return cls(BytesAhoCorasick(encoded, kind, implementation))

    def find_rows(self, texts: Texts) -> npt.NDArray[np.int64]:
        """Return, in order, all texts that hold a wanted one, and perhaps some that do not."""
        if self.automaton is None or not len(texts.data):
            return np.empty(0, np.int64)
        found = self.automaton.find_matches_as_indexes(texts.data)
        if not found:
            return np.empty(0, np.int64)
        _, start, end = np.array(found, np.int64).T
        first = texts.rows_at(start)
        last = texts.rows_at(end - 1)
        # a match over the end of a text hides what overlaps it in any of the texts that it touches
        touched = [np.arange(a, b + 1) for a, b in zip(first, last, strict=True)]
        return np.unique(np.concatenate(touched))
