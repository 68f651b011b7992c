import random
from fractions import Fraction

import pytest

from ja_instruct.retrieval.ranking import fuse_rankings


def fuse_plainly(rankings, k):
    """The paper's formula in exact numbers."""
    positions = {position for ranking in rankings for position in ranking}
    scores = {
        position: sum(
            Fraction(1, k + ranking.index(position) + 1)
            for ranking in rankings
            if position in ranking
        )
        for position in positions
    }
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


@pytest.mark.parametrize("k", [60, 1])
def test_scores_are_the_formula(k):
    rng = random.Random(k)
    for _ in range(20):
        rankings = [rng.sample(range(40), 25), rng.sample(range(40), 10)]
        expected = fuse_plainly(rankings, k)
        results = fuse_rankings(rankings, 12, k=k)
        assert [result.position for result in results] == [
            position for position, _ in expected[:12]
        ]
        for result, (_, score) in zip(results, expected, strict=False):
            assert result.score == pytest.approx(float(score))


def test_ties_are_broken_by_position():
    assert [result.position for result in fuse_rankings([[5, 2], [2, 5]], 2)] == [2, 5]


def test_default_constant_is_the_papers():
    assert fuse_rankings([[3], [3]], 5)[0].score == pytest.approx(2 / 61)


def test_an_empty_ranking_changes_nothing():
    alone = fuse_rankings([[4, 1, 0]], 3)
    assert [result.position for result in alone] == [4, 1, 0]
    assert fuse_rankings([[4, 1, 0], []], 3) == alone
    assert fuse_rankings([[], []], 3) == []
