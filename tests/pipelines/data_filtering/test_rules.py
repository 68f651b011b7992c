"""What each rule looks at, and which word lists are refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pycld2
import pytest
import yaml

from ja_instruct.errors import InputError
from ja_instruct.pipelines.data_filtering import rules
from ja_instruct.pipelines.data_filtering.rules import Pair, Rejection

PROJECT = Path(__file__).parents[3]
WORD_LISTS = PROJECT / "conf" / "base" / "word_lists"
RECIPE = PROJECT.parent / "shared" / "recipe"

QUESTION = "日本の首都はどこですか。"
ANSWER = "日本の首都は東京です。"
MIXED = ANSWER * 6 + "It is also the largest city of the country. "
TABLE = [{"find": "よしmitsu", "replace": "よしみつ"}]


@pytest.mark.parametrize("side", Pair._fields)
def test_banned_substring_is_found_in_either_side(side: str) -> None:
    pair = Pair(QUESTION, ANSWER)
    assert rules.banned_substring(pair, ["翻訳"]) is None
    spoilt = pair._replace(**{side: "これを翻訳して。"})
    assert rules.banned_substring(spoilt, ["英訳", "翻訳"]) == (
        "banned_substring",
        f"翻訳 ({side})",
    )


def test_banned_instruction_substring_ignores_the_response() -> None:
    assert rules.banned_instruction_substring(Pair(QUESTION, "翻訳"), ["翻訳"]) is None
    rejection = rules.banned_instruction_substring(Pair("翻訳", ANSWER), ["英訳", "翻訳"])
    assert rejection == ("banned_instruction_substring", "翻訳 (instruction)")


@pytest.mark.parametrize("side", Pair._fields)
@pytest.mark.parametrize("rule", [rules.rare_character, rules.rare_survivor_character])
def test_rare_character_is_found_in_either_side(
    rule: Callable[[Pair, set[str]], Rejection | None], side: str
) -> None:
    pair = Pair(QUESTION, ANSWER)
    assert rule(pair, {"𠮷", "岚"}) is None
    rejection = rule(pair._replace(**{side: "牛丼の𠮷野家"}), {"𠮷", "岚"})
    expected = "rare_character" if rule is rules.rare_character else "rare_survivor_character"
    assert rejection == (expected, f"𠮷 U+20BB7 ({side})")


@pytest.mark.parametrize("side", Pair._fields)
def test_language_needs_both_sides(side: str) -> None:
    pair = Pair(QUESTION, ANSWER)
    assert rules.language(pair, "ja", 60) is None
    for text in ["", "はい", "你好，我们是中国人，今天天气很好。", "How are you doing today?"]:
        rejection = rules.language(pair._replace(**{side: text}), "ja", 60)
        assert rejection is not None
        assert rejection.rule == "language"
        assert rejection.detail.endswith(f"({side})")


def test_language_percent_is_a_minimum_that_may_be_met_exactly() -> None:
    (share,) = [percent for _, code, percent, _ in pycld2.detect(MIXED)[2] if code == "ja"]
    assert 0 < share < 98
    assert rules.language(Pair(MIXED, MIXED), "ja", share) is None
    assert rules.language(Pair(MIXED, MIXED), "ja", share + 1) is not None


def test_language_may_be_another_one_than_the_first_detected() -> None:
    mixed = ANSWER + "It is also the largest city of the country, they say. " * 3
    assert pycld2.detect(mixed)[2][0][1] == "en"
    assert rules.language(Pair(mixed, mixed), "ja", 5) is None


@pytest.mark.parametrize("side", Pair._fields)
@pytest.mark.parametrize("text", [ANSWER + "\x0b", ANSWER + "\ud800", "\x00", "\ufffe" + ANSWER])
def test_what_cld2_fails_on_is_undetectable_even_beside_a_foreign_side(
    side: str, text: str
) -> None:
    pair = Pair("How are you doing today?", "How are you doing today?")
    rejection = rules.language(pair._replace(**{side: text}), "ja", 60)
    assert rejection is not None
    assert rejection.rule == "language_undetectable"
    assert rejection.detail.endswith(f"({side})")
    rejection.detail.encode()


def test_every_rule_gives_an_id_of_the_list() -> None:
    spoilt = Pair("翻訳 岚 English words only here", "\x00")
    rejections = [
        rules.banned_substring(spoilt, ["翻訳"]),
        rules.banned_instruction_substring(spoilt, ["翻訳"]),
        rules.rare_character(spoilt, {"岚"}),
        rules.language(spoilt, "ja", 60),
        rules.language(spoilt._replace(response=ANSWER), "ja", 60),
        rules.rare_survivor_character(spoilt, {"岚"}),
    ]
    assert tuple(rejection.rule for rejection in rejections if rejection) == rules.RULES


@pytest.mark.parametrize("name", ["banned_substrings", "banned_instruction_substrings"])
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["翻訳", ""], "entry 2 is empty"),
        (["翻訳", "英訳", "翻訳"], "entry 3 .*翻訳.* repeats entry 1"),
        (["翻訳", 110], "entry 2 is 110, not a text"),
        (None, "NoneType, not a list"),
        ("翻訳", "str, not a list"),
    ],
)
def test_refused_substrings(name: str, entries: object, message: str) -> None:
    lists = {"banned_substrings": ["翻訳"], "banned_instruction_substrings": []} | {name: entries}
    with pytest.raises(InputError, match=f"'{name}'.*{message}"):
        rules.read_word_lists(TABLE, *lists.values())


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([*TABLE, {"find": "", "replace": "a"}], "entry 2 has an empty 'find'"),
        ([*TABLE, *TABLE], "entry 2 .*よしmitsu.* repeats entry 1"),
        ([{"find": "♪"}], "entry 1 .*'find' and 'replace'"),
        ([{"find": "♪", "replace": "", "side": "response"}], "entry 1 .*'find' and 'replace'"),
        ([{"find": "♪", "replace": None}], "entry 1 .*in quotes"),
        ([{"find": 1, "replace": "一"}], "entry 1 .*in quotes"),
        (["♪"], "entry 1 .*'find' and 'replace'"),
        ({"♪": ""}, "dict, not a list"),
    ],
)
def test_refused_replacements(entries: object, message: str) -> None:
    with pytest.raises(InputError, match=f"'replacements'.*{message}"):
        rules.read_word_lists(entries, [], [])


@pytest.mark.parametrize(
    "name", ["replacements", "banned_substrings", "banned_instruction_substrings"]
)
def test_the_word_lists_are_those_of_the_recipe(name: str) -> None:
    if not RECIPE.exists():
        pytest.skip(f"the recipe's tables are not at {RECIPE}")
    recipe = RECIPE / f"{name}.json"
    expected = json.loads(recipe.read_text("utf-8")) if recipe.exists() else []
    assert yaml.safe_load((WORD_LISTS / f"{name}.yml").read_text("utf-8")) == expected


def test_the_word_lists_are_accepted() -> None:
    names = ["replacements", "banned_substrings", "banned_instruction_substrings"]
    lists = [yaml.safe_load((WORD_LISTS / f"{name}.yml").read_text("utf-8")) for name in names]
    read = rules.read_word_lists(*lists)
    assert list(map(len, read)) == [28, 296, 0]
