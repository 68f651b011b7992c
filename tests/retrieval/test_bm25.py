import math
import random
import unicodedata
from collections import Counter

import pytest

from ja_instruct.errors import InputError
from ja_instruct.retrieval.bm25 import search_bigrams, split_bigrams

POOL = [
    "日本の首都はどこですか。",
    "富士山の高さを教えてください!",
    "日本で一番長い川は何ですか。",
    "　",
    "日本で一番長い川は何ですか。",
    "ｺﾝﾋﾟｭｰﾀｰとは何ですか。",
]
QUERIES = ["日本の首都は?", "富士山について", "川の長さ", "コンピューター"]
K1, B = 1.5, 0.75


def score_plainly(pool, query):
    """Lucene's BM25 by its formula, text by text."""
    bags = [Counter(split_bigrams(text)) for text in pool]
    mean = sum(map(Counter.total, bags)) / len(pool)
    scores = []
    for bag in bags:
        total = 0.0
        for bigram in split_bigrams(query):
            spread = sum(bigram in other for other in bags)
            idf = math.log(1 + (len(pool) - spread + 0.5) / (spread + 0.5))
            count = bag[bigram]
            total += idf * count / (count + K1 * (1 - B + B * bag.total() / mean))
        scores.append(total)
    return scores


RNG = random.Random(0)
RANDOM = ["".join(RNG.choices("日本語東京川山", k=RNG.randrange(30))) for _ in range(60)]


@pytest.mark.parametrize(("pool", "queries"), [(POOL, QUERIES), (RANDOM, RANDOM[:20])])
def test_scores_are_plain_bm25(pool, queries):
    for query, results in zip(queries, search_bigrams(pool, queries, len(pool)), strict=True):
        expected = score_plainly(pool, query)
        order = sorted(range(len(pool)), key=lambda i: (-round(expected[i], 4), i))
        assert [result.position for result in results] == order
        scores = [expected[i] for i in order]
        assert [result.score for result in results] == pytest.approx(scores, abs=1e-5)


def test_ties_are_broken_by_position():
    pool = ["山", *["川の長さ"] * 50, "川の長さ"]
    (results,) = search_bigrams(pool, ["川の長さ"], 20)
    assert [result.position for result in results] == list(range(1, 21))
    assert len({result.score for result in results}) == 1


def test_width_case_and_spaces_do_not_matter():
    for same in ("ｺﾝﾋﾟｭｰﾀｰ", "コン ピューター", unicodedata.normalize("NFD", "コンピューター")):
        assert search_bigrams(POOL, [same], 6) == search_bigrams(POOL, ["コンピューター"], 6)
    assert search_bigrams(POOL, ["コンピューター"], 1)[0][0].position == 5


@pytest.mark.parametrize("query", ["", "　", "xyz"])
def test_a_query_without_common_bigrams(query, caplog):
    (results,) = search_bigrams(POOL, [query], 3)
    assert [tuple(result) for result in results] == [(0, 0.0), (1, 0.0), (2, 0.0)]
    assert "1 of 1 queries have no pair of characters" in caplog.text
    assert search_bigrams(POOL, [query], 3, keep_unrelated=False) == [[]]


def test_a_single_character_is_found():
    (results,) = search_bigrams(["川の名前", "川"], ["川"], 1)
    assert results[0].position == 1


def test_a_pool_without_text_is_refused():
    with pytest.raises(InputError, match="none of the 2 questions of 'few_shot_pool'"):
        search_bigrams(["", "　"], ["川"], 1)
