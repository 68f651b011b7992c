"""Characters, counted and found by arrays of code points."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import numpy as np

from ja_instruct.pipelines.data_filtering.findings import Findings, make_findings
from ja_instruct.pipelines.data_filtering.substrings import find_firsts

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    import numpy.typing as npt

    from ja_instruct.pipelines.data_filtering.texts import PairBatch

CODE_POINTS = sys.maxunicode + 1


def count_characters(batches: Iterable[PairBatch]) -> npt.NDArray[np.int64]:
    """Count as the recipe does: of each pair the response, a space and the instruction.

    Returns:
        How often each code point stands there, shape (CODE_POINTS,).
    """
    counts = np.zeros(CODE_POINTS, np.int64)
    for batch in batches:
        counts[ord(" ")] += len(batch)
        for side in batch.sides:
            of_side = np.bincount(side.characters)
            counts[: len(of_side)] += of_side
    return counts


def pick_characters(
    counts: npt.NDArray[np.int64], wanted: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]]
) -> dict[str, int]:
    """Return the characters that occur and whose counts are ``wanted``, in code point order."""
    points = np.flatnonzero((counts > 0) & wanted(counts))
    return {chr(point): int(counts[point]) for point in points.tolist()}


def mark_characters(characters: Collection[str]) -> npt.NDArray[np.bool_]:
    """Return for each code point whether it is one of ``characters``, shape (CODE_POINTS,)."""
    marks = np.zeros(CODE_POINTS, bool)
    marks[[ord(character) for character in characters]] = True
    return marks


def find_characters(batch: PairBatch, marks: npt.NDArray[np.bool_], rule: str) -> list[Findings]:
    """Find every marked character in each pair, each once a side.

    >>> from ja_instruct.pipelines.data_filtering.texts import make_batch
    >>> batch = make_batch([("見頃は。", "四月です。"), ("見頃は。", "四㌍月です。")])
    >>> [list(found) for found in find_characters(batch, mark_characters("㌍"), "rare_character")]
    [[], [Finding(row=1, rule='rare_character', side='response', matched='㌍')]]
    """
    parts = []
    for number, side in enumerate(batch.sides):
        started = time.perf_counter()
        places = np.flatnonzero(marks[side.characters])
        points = side.characters[places].astype(np.int64)
        rows = np.searchsorted(side.character_offsets, places, side="right") - 1
        firsts = find_firsts(rows * CODE_POINTS + points)
        matched = [chr(point) for point in points[firsts].tolist()]
        seconds = time.perf_counter() - started
        parts.append(make_findings(rule, number, rows[firsts] + batch.start, matched, seconds))
    return parts
