"""How often each character stands in a corpus, by arrays of code points."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy.typing as npt

    from ja_instruct.pipelines.data_filtering.batches import PairBatch


def count_characters(batches: Iterable[PairBatch]) -> npt.NDArray[np.int64]:
    """Count as the recipe does: of each pair the response, a space and the instruction.

    Returns:
        How often each code point stands there, shape (0x110000,).
    """
    counts = np.zeros(sys.maxunicode + 1, np.int64)
    for batch in batches:
        counts[ord(" ")] += len(batch)
        for field in batch.fields:
            of_field = np.bincount(field.characters)
            counts[: len(of_field)] += of_field
    return counts


def pick_characters(
    counts: npt.NDArray[np.int64], wanted: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]]
) -> dict[str, int]:
    """Return the characters that occur and whose counts are ``wanted``, in code point order."""
    points = np.flatnonzero((counts > 0) & wanted(counts))
    return {chr(point): int(counts[point]) for point in points.tolist()}
