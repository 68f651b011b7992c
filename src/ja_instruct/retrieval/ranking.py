"""Reciprocal rank fusion: several rankings made one, whatever their scores mean.

Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank
Learning Methods", SIGIR 2009 (https://doi.org/10.1145/1571941.1572114). A text's score is the sum,
over the rankings that hold it, of 1 / (k + rank), with ranks from 1.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from ja_instruct.retrieval.hits import Hit, best_first

if TYPE_CHECKING:
    from collections.abc import Sequence

# The paper's, fixed in a pilot before its experiments.
RANK_CONSTANT = 60


def fuse_rankings(
    rankings: Sequence[Sequence[int]], top_k: int, *, k: int = RANK_CONSTANT
) -> list[Hit]:
    """Fuse rankings of the same pool.

    Args:
        rankings: Positions, best first; a position that a ranking lacks gets nothing from it.
        top_k: Hits to return, fewer when the rankings hold fewer positions.
        k: How little the first ranks stand out; the larger, the less.

    Returns:
        Hits with the fused score, best first; the earlier position wins a tie.

    >>> [hit.position for hit in fuse_rankings([[4, 7, 1], [7, 2]], top_k=3)]
    [7, 4, 2]
    """
    scores: defaultdict[int, float] = defaultdict(float)
    for ranking in rankings:
        for rank, position in enumerate(ranking, start=1):
            scores[position] += 1 / (k + rank)
    return best_first((Hit(position, score) for position, score in scores.items()), top_k)
