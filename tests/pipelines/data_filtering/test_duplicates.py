"""Exact and near duplicates, against straightforward references."""

import json
import os
import random
import re
import subprocess
import sys
from typing import Any
from unittest import mock

import numpy as np
import pytest
from filter_pairs import first_turn, read_real_conversations
from hypothesis import given
from hypothesis import strategies as st

from ja_instruct.pipelines.data_filtering import duplicates
from ja_instruct.pipelines.data_filtering.duplicates import (
    NearDuplicate,
    find_exact_duplicates,
    find_near_duplicates,
)
from ja_instruct.text import collapse_whitespace, ngram_set

Row = tuple[int, str, str]

# few letters, some of them equal after normalization, so that texts often repeat
TEXTS = st.text("アｱか１1 \u3000\n", max_size=4)
LISTS = st.lists(st.tuples(TEXTS, TEXTS), max_size=30)
# longer texts with one or two different words, for similarities of all sizes
WORDS = st.lists(
    st.sampled_from(["東京", "は大きな", "都市です", "京都", "。", "3", "２"]), max_size=8
)
SENTENCES = st.lists(st.tuples(WORDS.map("".join), WORDS.map("".join)), max_size=12)


def number(pairs: list[tuple[str, str]]) -> list[Row]:
    """Number the pairs by rows that neither begin at 0 nor are consecutive."""
    return [(10 + 3 * place, *pair) for place, pair in enumerate(pairs)]


def find_near(rows: list[Row], jaccard_min: float = 0.6) -> list[NearDuplicate]:
    fields = {row: (instruction, response) for row, instruction, response in rows}
    found = find_near_duplicates(iter(rows), read_pair=fields.__getitem__, jaccard_min=jaccard_min)
    return list(found)


def compare(first: tuple[str, str], second: tuple[str, str]) -> float:
    """Return the lower of the fields' similarities, or 0 if their numbers differ."""
    similarities = []
    for texts in zip(first, second, strict=True):
        one, other = map(collapse_whitespace, texts)
        if re.findall(r"\d+", one) != re.findall(r"\d+", other):
            return 0.0
        sets = [
            {text[start : start + 3] for start in range(max(1, len(text) - 2))}
            for text in (one, other)
        ]
        similarities.append(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    return min(similarities)


def find_near_slowly(rows: list[Row], jaccard_min: float) -> list[int]:
    kept: list[Row] = []
    rejected = []
    for row in rows:
        likeness = [compare(row[1:], earlier[1:]) for earlier in kept]
        if max(likeness, default=0.0) >= jaccard_min:
            rejected.append(row[0])
        else:
            kept.append(row)
    return rejected


class BlindSketch:
    """Replaces ``rensa.RMinHash``: all texts have the same signature."""

    @classmethod
    def digest_matrix_from_flat_token_hashes(
        cls, hashes: Any, offsets: Any, values: int, seed: int
    ) -> Any:
        return mock.Mock(to_rows=lambda: [[7] * values] * (len(offsets) - 1))


@given(LISTS)
def test_exact_duplicates_match_a_dictionary(pairs: list[tuple[str, str]]) -> None:
    rows = number(pairs)
    first: dict[tuple[str, str], int] = {}
    expected = []
    for row, instruction, response in rows:
        key = (collapse_whitespace(instruction), collapse_whitespace(response))
        if key in first:
            expected.append((row, first[key]))
        first.setdefault(key, row)
    assert list(find_exact_duplicates(iter(rows))) == expected


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("ab", "c"), ("a", "bc")),
        (("", "a"), ("a", "")),
        (("東京", "京都"), ("京都", "東京")),
        (("1 0", "答"), ("10", "答")),
        (("は", "答"), ("ば", "答")),
    ],
)
def test_different_pairs_are_kept(first: tuple[str, str], second: tuple[str, str]) -> None:
    assert list(find_exact_duplicates([(0, *first), (1, *second)])) == []


def test_lone_surrogates_are_compared() -> None:
    rows = [(0, "\ud800", "答"), (1, "\ud801", "答"), (2, "\ud800", "答")]
    assert list(find_exact_duplicates(rows)) == [(2, 0)]
    assert [near.row for near in find_near(rows)] == [2]


@given(SENTENCES, st.sampled_from([0.5, 0.6, 0.8, 1.0]))
def test_candidates_are_decided_by_their_true_similarity(
    pairs: list[tuple[str, str]], jaccard_min: float
) -> None:
    rows = number(pairs)
    with mock.patch("rensa.RMinHash", BlindSketch):
        found = find_near(rows, jaccard_min)
    assert [near.row for near in found] == find_near_slowly(rows, jaccard_min)
    rejected = {near.row for near in found}
    fields = {row: (instruction, response) for row, instruction, response in rows}
    for row, earlier, similarity in found:
        assert earlier < row
        assert earlier not in rejected
        assert similarity == compare(fields[row], fields[earlier])
        assert similarity >= jaccard_min


def alter(text: str, edits: int, rng: random.Random) -> str:
    letters = list(text)
    for place in rng.sample(range(len(letters)), edits):
        letters[place] = chr(rng.randrange(0x4E00, 0x9FA0))
    return "".join(letters)


def make_altered_pairs(count: int) -> list[Row]:
    """Return pairs of Han characters at random, each followed by an altered one."""
    rng = random.Random(0)
    rows: list[Row] = []
    for _ in range(count):
        fields = ["".join(chr(rng.randrange(0x4E00, 0x9FA0)) for _ in range(80)) for _ in (0, 1)]
        rows.append((len(rows), fields[0], fields[1]))
        edits = rng.randrange(2, 9)
        rows.append((len(rows), *(alter(field, edits, rng) for field in fields)))
    return rows


def test_near_duplicates_are_found_down_to_the_threshold() -> None:
    rows = make_altered_pairs(600)
    expected = set(find_near_slowly(rows[:400], 0.6))
    assert 100 < len(expected) < 200  # edits on both sides of the threshold
    found = {near.row for near in find_near(rows[:400])}
    assert found <= expected
    assert len(found) >= 0.98 * len(expected)


def test_bands_are_the_same_in_every_process() -> None:
    rows = make_altered_pairs(20)
    program = (
        "import json, sys\n"
        "from ja_instruct.pipelines.data_filtering.duplicates import _hash_bands\n"
        "print(_hash_bands(json.load(sys.stdin), 5)[1].tolist())\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(rows).encode(),
        env={**os.environ, "PYTHONHASHSEED": "1"},
        check=True,
        capture_output=True,
    ).stdout
    assert json.loads(output) == duplicates._hash_bands(rows, 5)[1].tolist()


@given(LISTS.filter(bool))
def test_hashes_are_those_of_the_ngrams(pairs: list[tuple[str, str]]) -> None:
    fields = [collapse_whitespace(field) for pair in pairs for field in pair]
    hashes, offsets = duplicates._hash_ngrams(fields)
    names: dict[int, tuple[int, str]] = {}
    for place, text in enumerate(fields):
        found = hashes[offsets[place] : offsets[place + 1]].tolist()
        assert len(set(found)) == len(ngram_set(text, 3))
        # the same n-gram has one hash in the instructions, another in the responses
        name = (place % 2, text[:3])
        assert names.setdefault(found[0], name) == name
    assert len(hashes) == offsets[-1]


@pytest.mark.parametrize("jaccard_min", [0.5, 0.6, 0.75, 0.9, 1.0])
def test_bands_keep_the_recall(jaccard_min: float) -> None:
    values = duplicates._count_band_values(jaccard_min)
    agree = jaccard_min**values
    rng = np.random.default_rng(0)
    shared = rng.binomial(duplicates.BANDS, agree, size=100_000)
    assert (shared >= duplicates.SHARED_BANDS_MIN).mean() > 0.985
    assert 1 <= values <= duplicates.BAND_VALUES_MAX


def test_pairs_on_one_passage_with_another_question_are_kept() -> None:
    passage = "東京は日本の首都であり、人口は千四百万人を数える世界有数の大都市である。" * 3
    rows = [
        (0, f"人口は何人ですか。\n{passage}", "千四百万人です。"),
        (1, f"どこの首都ですか。\n{passage}", "日本です。"),
    ]
    assert find_near(rows) == []
    assert compare(rows[0][1:], (rows[1][1], rows[0][2])) > 0.6


def test_pairs_with_other_numbers_are_kept() -> None:
    question = "次の三つの映画評に、それぞれ一から五までの点をつけ、整数の配列で返してください。"
    rows = [(0, question, "点数は[5, 1, 3]です。"), (1, question, "点数は[5, 2, 3]です。")]
    assert find_near(rows) == []
    assert [near.row for near in find_near([*rows, (2, question, "点数は[５, 2, 3]です")])] == [2]


@pytest.mark.parametrize("rows", [[], [(5, "", "")], [(5, "問", "答")]])
def test_fewer_than_two_pairs_have_no_duplicates(rows: list[Row]) -> None:
    assert list(find_exact_duplicates(rows)) == []
    assert find_near(rows) == []


def test_duplicates_of_real_conversations() -> None:
    rows = [
        (number, first_turn(row, "user"), first_turn(row, "assistant"))
        for number, row in enumerate(read_real_conversations())
    ]
    exact = list(find_exact_duplicates(rows))
    near = find_near(rows)
    assert len(exact) == 10
    assert {row for row, _ in exact} <= {duplicate.row for duplicate in near}
    assert 40 <= len(near) <= 46
