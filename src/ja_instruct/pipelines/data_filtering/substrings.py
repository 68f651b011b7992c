"""Many texts looked for at once: an Aho-Corasick automaton over the UTF-8 of a batch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ja_instruct.pipelines.data_filtering.findings import Findings, make_findings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from ahocorasick_rs import BytesAhoCorasick

    from ja_instruct.pipelines.data_filtering.texts import PairBatch, Texts


@dataclass(frozen=True)
class Automaton:
    """The texts to find, and the automaton that finds them all in one pass."""

    patterns: tuple[str, ...]
    automaton: BytesAhoCorasick | None

    @classmethod
    def build(cls, patterns: Sequence[str]) -> Automaton:
        """Build it. A deterministic one: twice as fast as the default, and the lists are short."""
        from ahocorasick_rs import BytesAhoCorasick, Implementation

        if not patterns:
            return cls((), None)
        encoded = [pattern.encode() for pattern in patterns]
        return cls(tuple(patterns), BytesAhoCorasick(encoded, implementation=Implementation.DFA))

    def find(self, texts: Texts) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return row and pattern of every match, overlapping ones too, as they stand in the texts.

        A text of UTF-8 is found in its bytes exactly where it stands in its characters.
        """
        none = np.empty(0, np.int64)
        if self.automaton is None or not len(texts.data):
            return none, none
        found = self.automaton.find_matches_as_indexes(texts.data, overlapping=True)
        if not found:
            return none, none
        pattern, start, end = np.array(found, np.int64).T
        rows = np.searchsorted(texts.offsets, start, side="right") - 1
        # the texts follow each other without a gap, so a match may run over an end
        inside = end <= texts.offsets[rows + 1]
        order = np.argsort(start[inside], kind="stable")
        return rows[inside][order], pattern[inside][order]


def find_substrings(
    batch: PairBatch, banned: Automaton, rule: str, sides: Sequence[int] = (0, 1)
) -> list[Findings]:
    """Find every banned substring in the given sides of each pair, each once a side.

    >>> from ja_instruct.pipelines.data_filtering.texts import make_batch
    >>> banned = Automaton.build(["翻訳", "https://"])
    >>> batch = make_batch([("日本の首都は。", "東京です。"), ("次の文を翻訳して。", "はい。")])
    >>> [list(found) for found in find_substrings(batch, banned, "banned_substring")]
    [[Finding(row=1, rule='banned_substring', side='instruction', matched='翻訳')], []]
    """
    parts = []
    for side in sides:
        started = time.perf_counter()
        rows, patterns = banned.find(batch.sides[side])
        firsts = find_firsts(rows * max(len(banned.patterns), 1) + patterns)
        matched = [banned.patterns[pattern] for pattern in patterns[firsts].tolist()]
        seconds = time.perf_counter() - started
        parts.append(make_findings(rule, side, rows[firsts] + batch.start, matched, seconds))
    return parts


def find_firsts(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """Return where each key stands for the first time, in order.

    >>> find_firsts(np.array([7, 3, 7, 3, 1])).tolist()
    [0, 1, 4]
    """
    return np.sort(np.unique(keys, return_index=True)[1])
