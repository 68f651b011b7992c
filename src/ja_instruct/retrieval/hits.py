"""What a search finds, and the order it comes in."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Hit(NamedTuple):
    """One result: the position of a question in the pool, and its score."""

    position: int
    score: float


def best_first(hits: Iterable[Hit], top_k: int) -> list[Hit]:
    """Return the ``top_k`` hits of the highest scores; the earlier position wins a tie.

    >>> best_first([Hit(2, 0.5), Hit(0, 0.1), Hit(1, 0.5)], top_k=2)
    [Hit(position=1, score=0.5), Hit(position=2, score=0.5)]
    """
    return sorted(hits, key=lambda hit: (-hit.score, hit.position))[:top_k]
