"""Search results, and reciprocal rank fusion of several rankings.

Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank
Learning Methods", SIGIR 2009 (https://doi.org/10.1145/1571941.1572114): the score of a text is the
sum, over the rankings that contain it, of 1 / (k + rank), with ranks from 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# The paper's constant
RANK_CONSTANT = 60


class Result(NamedTuple):
    """The position of a question in the pool, and its score."""

    position: int
    score: float


def best_first(results: Iterable[Result], top_k: int) -> list[Result]:
    """Return the ``top_k`` results with the highest scores; the earlier position wins a tie.

    >>> best_first([Result(2, 0.5), Result(0, 0.1), Result(1, 0.5)], top_k=2)
    [Result(position=1, score=0.5), Result(position=2, score=0.5)]
    """
    return sorted(results, key=lambda result: (-result.score, result.position))[:top_k]


def fuse_rankings(
    rankings: Sequence[Sequence[int]], top_k: int, *, k: int = RANK_CONSTANT
) -> list[Result]:
    """Fuse rankings, positions in the same pool, into at most ``top_k`` results, best first.

    A position adds nothing for a ranking that lacks it. ``k`` is the smoothing constant: larger
    values flatten the ranks.

    >>> [result.position for result in fuse_rankings([[4, 7, 1], [7, 2]], top_k=3)]
    [7, 4, 2]
    """
    scores: defaultdict[int, float] = defaultdict(float)
    for ranking in rankings:
        for rank, position in enumerate(ranking, start=1):
            scores[position] += 1 / (k + rank)
    return best_first((Result(position, score) for position, score in scores.items()), top_k)
