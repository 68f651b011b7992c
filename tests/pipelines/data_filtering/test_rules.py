"""What each rule of the recipe finds, against a plain reading of its definition."""

from typing import Any

import numpy as np
import pycld2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ja_instruct.pipelines.data_filtering.characters import (
    count_characters,
    find_characters,
    mark_characters,
    pick_characters,
)
from ja_instruct.pipelines.data_filtering.findings import SIDES, Finding, Findings
from ja_instruct.pipelines.data_filtering.language import find_other_languages
from ja_instruct.pipelines.data_filtering.substrings import Automaton, find_substrings
from ja_instruct.pipelines.data_filtering.texts import make_batch

QUESTION = "日本の首都はどこですか。"
ANSWER = "日本の首都は東京です。"
MIXED = ANSWER * 6 + "It is also the largest city of the country. "

letters = st.text(st.sampled_from("ab翻訳𠮷é"), max_size=6)
pairs = st.lists(st.tuples(letters, letters), max_size=5)


def flatten(parts: list[Findings]) -> list[Finding]:
    return [finding for part in parts for finding in part]


def judge_language(pair: tuple[str, str], percent_min: int = 60) -> list[Finding]:
    return flatten(find_other_languages(make_batch([pair]), np.arange(1), "ja", percent_min))


def spoil(side: str, text: str) -> tuple[str, str]:
    return (text, ANSWER) if side == "instruction" else (QUESTION, text)


@given(pairs, st.lists(st.text(st.sampled_from("ab翻訳é"), min_size=1, max_size=3), unique=True))
def test_substrings_are_those_that_python_finds(
    texts: list[tuple[str, str]], banned: list[str]
) -> None:
    batch = make_batch(texts, start=10)
    found = flatten(find_substrings(batch, Automaton.build(banned), "banned_substring"))
    expected = {
        (row + 10, "banned_substring", side, substring)
        for row, pair in enumerate(texts)
        for side, text in zip(SIDES, pair, strict=True)
        for substring in banned
        if substring in text
    }
    assert len(found) == len(expected)
    assert set(found) == expected


def test_substrings_do_not_run_over_the_end_of_a_text() -> None:
    batch = make_batch([("次の文を翻", "はい。"), ("訳して。", "はい。")])
    assert flatten(find_substrings(batch, Automaton.build(["翻訳"]), "banned_substring")) == []


def test_substrings_stand_in_the_order_of_the_text() -> None:
    batch = make_batch([("英訳と翻訳と英訳", "")])
    banned = Automaton.build(["翻訳", "英訳", "訳と翻"])
    found = flatten(find_substrings(batch, banned, "banned_substring"))
    assert [finding.matched for finding in found] == ["英訳", "訳と翻", "翻訳"]


def test_a_list_for_the_instruction_leaves_the_response_alone() -> None:
    batch = make_batch([("問", "翻訳"), ("翻訳", "答")])
    rule = "banned_instruction_substring"
    found = flatten(find_substrings(batch, Automaton.build(["翻訳"]), rule, sides=[0]))
    assert found == [(1, rule, "instruction", "翻訳")]


@given(pairs, st.sets(st.sampled_from("a訳𠮷é")))
def test_characters_are_those_that_python_finds(
    texts: list[tuple[str, str]], rare: set[str]
) -> None:
    batch = make_batch(texts, start=10)
    found = flatten(find_characters(batch, mark_characters(rare), "rare_character"))
    expected = [
        (row + 10, "rare_character", side, character)
        for number, side in enumerate(SIDES)
        for row, pair in enumerate(texts)
        for character in dict.fromkeys(pair[number])
        if character in rare
    ]
    assert found == expected


@given(pairs)
def test_counts_are_those_of_the_joined_sides(texts: list[tuple[str, str]]) -> None:
    counts = count_characters([make_batch(texts[:2]), make_batch(texts[2:])])
    joined = "".join(f"{response} {instruction}" for instruction, response in texts)
    expected = {character: joined.count(character) for character in sorted(set(joined))}
    assert pick_characters(counts, lambda count: count > 0) == expected


@pytest.mark.parametrize("side", SIDES)
def test_language_needs_both_sides(side: str) -> None:
    assert judge_language((QUESTION, ANSWER)) == []
    for text in ["", "はい", "你好，我们是中国人，今天天气很好。", "How are you doing today?"]:
        (finding,) = judge_language(spoil(side, text))
        assert finding[:3] == (0, "language", side)


def test_language_percent_is_a_minimum_that_may_be_met_exactly() -> None:
    (share,) = [percent for _, code, percent, _ in pycld2.detect(MIXED)[2] if code == "ja"]
    assert 0 < share < 98
    assert judge_language((MIXED, MIXED), share) == []
    assert len(judge_language((MIXED, MIXED), share + 1)) == 2


def test_language_may_be_another_one_than_the_first_detected() -> None:
    mixed = ANSWER + "It is also the largest city of the country, they say. " * 3
    assert pycld2.detect(mixed)[2][0][1] == "en"
    assert judge_language((mixed, mixed), 5) == []
    assert judge_language((mixed, ANSWER), 60)[0].matched.startswith("en ")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("text", [ANSWER + "\x0b", "\x00", "\ufffe" + ANSWER, "\ufdd0"])
def test_what_cld2_fails_on_is_undetectable_even_beside_a_foreign_side(
    side: str, text: str
) -> None:
    foreign = ["How are you doing today?"] * 2
    foreign[SIDES.index(side)] = text
    (finding,) = judge_language((foreign[0], foreign[1]))
    assert finding[:3] == (0, "language_undetectable", side)


def test_language_is_asked_of_the_given_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    detect = pycld2.detect
    monkeypatch.setattr(pycld2, "detect", lambda text: asked.append(text) or detect(text))
    batch = make_batch([(QUESTION, ANSWER), ("Hello there, my friend.", ANSWER), ("", "")], start=5)
    found = flatten(find_other_languages(batch, np.array([1]), "ja", 60))
    assert [finding.row for finding in found] == [6]
    assert asked == [b"Hello there, my friend.", ANSWER.encode()]
