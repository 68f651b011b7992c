"""The rules of the recipe, against a plain reading of their definitions."""

from typing import Any

import numpy as np
import pycld2
import pytest
from filter_pairs import ANSWER, QUESTION, make_batch
from hypothesis import given
from hypothesis import strategies as st

from ja_instruct.pipelines.data_filtering import substrings as substrings_module
from ja_instruct.pipelines.data_filtering.cld2_process import detect_all
from ja_instruct.pipelines.data_filtering.language import find_other_languages
from ja_instruct.pipelines.data_filtering.substrings import (
    Banned,
    build_candidate_automaton,
    find_banned,
    find_candidates,
)
from ja_instruct.pipelines.data_filtering.violations import FIELDS, Violation

MIXED = ANSWER * 6 + "It is also the largest city of the country. "

letters = st.text(st.sampled_from("ab翻訳𠮷é"), max_size=6)
pairs = st.lists(st.tuples(letters, letters), max_size=5)


def find(texts: list[tuple[str, str]], start: int = 0, **banned: list[str]) -> list[Violation]:
    parts = find_banned(make_batch(texts, start), Banned.build(banned))
    return [violation for part in parts for violation in part]


def judge_language(pair: tuple[str, str], percent_min: int = 60) -> list[Violation]:
    return list(find_other_languages(make_batch([pair]), np.arange(1), "ja", percent_min))


def spoil(field: str, text: str) -> tuple[str, str]:
    return (text, ANSWER) if field == "instruction" else (QUESTION, text)


substrings = st.lists(st.text(st.sampled_from("ab翻訳é"), min_size=1, max_size=3), unique=True)


@given(pairs, substrings, substrings, st.sets(st.sampled_from("a訳𠮷é")))
def test_banned_texts_are_those_that_python_finds(
    texts: list[tuple[str, str]],
    banned: list[str],
    banned_in_instruction: list[str],
    rare: set[str],
) -> None:
    lists = {
        "banned_substring": banned,
        "banned_instruction_substring": banned_in_instruction,
        "rare_character": sorted(rare),
    }
    found = find(texts, start=10, **lists)
    expected = {
        (row + 10, rule, field, text)
        for rule, of_rule in lists.items()
        for row, pair in enumerate(texts)
        for field, searched in zip(FIELDS, pair, strict=True)
        for text in of_rule
        if text in searched and (field == "instruction" or rule != "banned_instruction_substring")
    }
    assert len(found) == len(expected)
    assert set(found) == expected


def test_both_kinds_of_automata_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [("英訳と翻訳と英訳", "訳𠮷")]
    lists = {"banned_substring": ["翻訳", "英訳", "訳と翻"], "rare_character": ["𠮷"]}
    found = find(texts, **lists)
    monkeypatch.setattr(substrings_module, "PATTERNS_MAX_OF_DFA", 2)
    assert find(texts, **lists) == found
    assert [violation.matched for violation in found] == ["英訳", "訳と翻", "翻訳", "𠮷"]


@given(pairs, substrings)
def test_candidates_include_all_texts_with_a_match(
    texts: list[tuple[str, str]], wanted: list[str]
) -> None:
    field = make_batch(texts).instruction
    rows = find_candidates(build_candidate_automaton(wanted), field).tolist()
    assert rows == sorted(set(rows))
    holding = [row for row, (text, _) in enumerate(texts) if any(one in text for one in wanted)]
    assert set(holding) <= set(rows) <= set(range(len(texts)))


def test_candidates_are_few() -> None:
    field = make_batch([(text, "") for text in ("ひ", "ふ翻訳", "み", "よ翻", "訳")]).instruction
    # the last two contain it only together; the search includes both
    assert find_candidates(build_candidate_automaton(["翻訳"]), field).tolist() == [1, 3, 4]


@pytest.mark.parametrize("field", FIELDS)
def test_language_needs_both_fields(field: str) -> None:
    assert judge_language((QUESTION, ANSWER)) == []
    for text in ["", "はい", "你好，我们是中国人，今天天气很好。", "How are you doing today?"]:
        (violation,) = judge_language(spoil(field, text))
        assert violation[:3] == (0, "language", field)


def test_the_language_limit_is_inclusive() -> None:
    (share,) = [percent for _, code, percent, _ in pycld2.detect(MIXED)[2] if code == "ja"]
    assert 0 < share < 98
    assert judge_language((MIXED, MIXED), share) == []
    assert len(judge_language((MIXED, MIXED), share + 1)) == 2


def test_the_language_need_not_be_detected_first() -> None:
    mixed = ANSWER + "It is also the largest city of the country, they say. " * 3
    assert pycld2.detect(mixed)[2][0][1] == "en"
    assert judge_language((mixed, mixed), 5) == []
    assert judge_language((mixed, ANSWER), 60)[0].matched.startswith("en ")


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("text", [ANSWER + "\x0b", "\x00", "\ufffe" + ANSWER, "\ufdd0"])
def test_undetectable_text_takes_precedence_over_a_foreign_field(field: str, text: str) -> None:
    foreign = ["How are you doing today?"] * 2
    foreign[FIELDS.index(field)] = text
    (violation,) = judge_language((foreign[0], foreign[1]))
    assert violation[:3] == (0, "language_undetectable", field)


def test_only_the_given_rows_are_checked() -> None:
    checked: list[bytes] = []

    def detect(texts: list[bytes], code: str, percent_min: int) -> list[Any]:
        checked.extend(texts)
        return detect_all(texts, code, percent_min)

    batch = make_batch([(QUESTION, ANSWER), ("Hello there, my friend.", ANSWER), ("", "")], start=5)
    found = find_other_languages(batch, np.array([1]), "ja", 60, detect)
    assert [violation.row for violation in found] == [6]
    assert checked == [b"Hello there, my friend.", ANSWER.encode()]
