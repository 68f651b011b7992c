"""Searches for many substrings and characters at once.

Substrings are found by Aho-Corasick automata over UTF-8: the bytes of one text occur in the bytes
of another exactly where its characters do. Characters are counted in arrays of code points.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ja_instruct.pipelines.data_filtering.batches import HISTORY
from ja_instruct.pipelines.data_filtering.pairs import make_fields, make_history
from ja_instruct.pipelines.data_filtering.violations import PLACES, RULES, Violations

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    import numpy.typing as npt
    import pyarrow as pa
    from ahocorasick_rs import BytesAhoCorasick

    from ja_instruct.pipelines.data_filtering.batches import PairBatch, Texts
    from ja_instruct.tables.word_lists import Replacement

#: A deterministic automaton is twice as fast as the other kind, and takes about 1 kB per pattern.
PATTERNS_MAX_OF_DFA = 30_000

#: Rules that apply to the instruction alone.
INSTRUCTION_ONLY = ("banned_instruction_substring",)


def count_characters(batches: Iterable[PairBatch]) -> npt.NDArray[np.int64]:
    """Count characters as the recipe does: the response, a space and the instruction of each pair.

    Every turn of the history adds a space and its text.

    Returns:
        The count of each code point, shape (0x110000,).
    """
    counts = np.zeros(sys.maxunicode + 1, np.int64)
    for batch in batches:
        counts[ord(" ")] -= len(batch)
        for part in batch.parts:
            counts[ord(" ")] += len(part.rows)
            in_part = np.bincount(part.texts.characters)
            counts[: len(in_part)] += in_part
    return counts


def pick_characters(counts: npt.NDArray[np.int64], count_max: int) -> dict[str, int]:
    """Return the characters that occur 1 to ``count_max`` times, in code point order."""
    points = np.flatnonzero((counts > 0) & (counts <= count_max))
    return {chr(point): int(counts[point]) for point in points.tolist()}


@dataclass(frozen=True)
class Banned:
    """Banned substrings, and the automaton that finds all of them in one pass.

    Attributes:
        texts: The substrings.
        rules: The rule that bans each, as a position in ``RULES``, shape (texts,).
        automaton: None when there is nothing to find.
    """

    texts: tuple[str, ...]
    rules: npt.NDArray[np.int64]
    automaton: BytesAhoCorasick | None

    @classmethod
    def build(cls, lists: Mapping[str, Collection[str]]) -> Banned:
        """Build the automaton from the substrings that each rule bans."""
        from ahocorasick_rs import BytesAhoCorasick, Implementation

        texts = tuple(text for banned in lists.values() for text in banned)
        rules = [RULES.index(rule) for rule, banned in lists.items() for _ in banned]
        few = len(texts) <= PATTERNS_MAX_OF_DFA
        kind = Implementation.DFA if few else Implementation.ContiguousNFA
        encoded = [text.encode() for text in texts]
        automaton = BytesAhoCorasick(encoded, implementation=kind) if texts else None
        return cls(texts, np.array(rules, np.int64), automaton)

    def find(self, texts: Texts) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return row and pattern of every match, overlapping ones included, in text order.

        A pattern is listed once per text, at its first match.

        >>> import pyarrow as pa
        >>> from ja_instruct.pipelines.data_filtering.batches import Texts
        >>> texts = Texts.from_arrow(pa.array(["見頃は。", "翻訳して。"]))
        >>> Banned.build({"banned_substring": ["翻訳"]}).find(texts)
        (array([1]), array([0]))
        """
        pattern, start, end = _find_matches(self.automaton, texts, overlapping=True)
        rows = texts.rows_at(start)
        # the texts are adjacent in memory, so a match may run past the end of its text
        inside = end <= texts.offsets[rows + 1]
        order = np.flatnonzero(inside)[np.argsort(start[inside], kind="stable")]
        keys = rows[order] * len(self.texts) + pattern[order]
        order = order[np.sort(np.unique(keys, return_index=True)[1])]
        return rows[order], pattern[order]


def find_banned(batch: PairBatch, banned: Banned) -> list[Violations]:
    """Find every banned substring in each pair, each once per text."""
    parts = []
    instruction_only = [RULES.index(rule) for rule in INSTRUCTION_ONLY]
    for part in batch.parts:
        texts, patterns = banned.find(part.texts)
        rules = banned.rules[patterns]
        if part.kind != "instruction":
            applies = ~np.isin(rules, instruction_only)
            texts, patterns, rules = texts[applies], patterns[applies], rules[applies]
        matched = [banned.texts[pattern] for pattern in patterns.tolist()]
        place = PLACES.index(part.place)
        parts.append(Violations.from_arrays(part.rows[texts], rules, place, matched))
    return parts


def build_candidate_automaton(wanted: Collection[str]) -> BytesAhoCorasick | None:
    """Build the automaton for ``find_candidates``; None without substrings."""
    from ahocorasick_rs import BytesAhoCorasick, Implementation, MatchKind

    encoded = [text.encode() for text in wanted]
    kind, implementation = MatchKind.LeftmostLongest, Implementation.DFA
    return BytesAhoCorasick(encoded, kind, implementation) if wanted else None


def find_candidates(automaton: BytesAhoCorasick | None, texts: Texts) -> npt.NDArray[np.int64]:
    """Return, in order, all texts that contain a wanted substring, and perhaps some that do not.

    This is four times as fast as ``Banned``: matches that do not overlap are found by vector
    instructions of the processor; the matches that they hide lie in the same texts.
    """
    _, start, end = _find_matches(automaton, texts, overlapping=False)
    first = texts.rows_at(start)
    last = texts.rows_at(end - 1)
    # a match that crosses texts may hide a real match in any of them
    touched = [np.arange(a, b + 1) for a, b in zip(first, last, strict=True)]
    return np.unique(np.concatenate([np.empty(0, np.int64), *touched]))


def _find_matches(
    automaton: BytesAhoCorasick | None, texts: Texts, *, overlapping: bool
) -> npt.NDArray[np.int64]:
    """Return pattern, start and end of each match, shape (3, matches)."""
    if automaton is None or not len(texts.data):
        return np.empty((3, 0), np.int64)
    found = automaton.find_matches_as_indexes(texts.data, overlapping=overlapping)
    return np.array(found, np.int64).reshape(-1, 3).T


def replace_in_batch(
    batch: PairBatch, table: Sequence[Replacement], automaton: BytesAhoCorasick | None
) -> tuple[pa.Table, dict[str, int]]:
    """Apply the replacement table, in its order, to all texts of each pair.

    Only the texts that may contain a ``find``, by the automaton, are decoded.

    Returns:
        The columns of texts, and the number of pairs that each ``find`` was replaced in.
    """
    touched: dict[str, set[int]] = {}
    columns = []
    fields = [(texts, np.arange(len(batch))) for texts in batch.fields]
    if batch.history is not None:
        fields.append((batch.history.contents, batch.history.owners))
    for texts, owners in fields:
        rows = find_candidates(automaton, texts)
        new = []
        for row, encoded in zip(rows.tolist(), texts.encoded(rows), strict=True):
            text = encoded.decode()
            for find, replace in table:
                if find in text:
                    touched.setdefault(find, set()).add(int(owners[row]))
                    text = text.replace(find, replace)
            new.append(text)
        columns.append(_put(texts.array, rows, new) if new else texts.array)
    instructions, responses, *contents = columns
    replaced = make_fields(instructions, responses)
    if batch.history is not None:
        history = make_history(batch.history.offsets, batch.history.roles, *contents)
        replaced = replaced.append_column(HISTORY, history)
    return replaced, {find: len(rows) for find, rows in touched.items()}


def _put(texts: pa.StringArray, rows: npt.NDArray[np.int64], new: list[str]) -> pa.StringArray:
    """Return the texts with those of ``rows`` (ascending) replaced."""
    import pyarrow as pa
    import pyarrow.compute as pc

    mask = np.zeros(len(texts), bool)
    mask[rows] = True
    return pc.replace_with_mask(texts, pa.array(mask), pa.array(new, texts.type))
