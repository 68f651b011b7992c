"""Which word lists are rejected, with which message, and the promise of an accepted table."""

import re
from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ja_instruct.errors import InputError
from ja_instruct.tables.word_lists import (
    Replacement,
    parse_word_list,
    read_replacements,
    read_substrings,
)


def table(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"find": find, "replace": replace} for find, replace in pairs]


def refusal_of(read, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        read(*arguments)
    return str(caught.value)


def test_substrings_keep_their_order_and_their_spaces() -> None:
    entries = ["翻訳", " - Arigatou ", "yes", "\n", "英語訳", "英語"]
    assert read_substrings(entries, "banned") == entries
    assert read_substrings([], "banned") == []


def test_replacements_keep_their_order() -> None:
    pairs = [("♪", ""), ("よしmitsu", "よしみつ"), (" ", "　")]
    read = read_replacements(table(*pairs), "replacements")
    assert read == [Replacement(*pair) for pair in pairs]
    assert read_replacements([], "replacements") == []


def test_checked_list_is_returned_as_it_is() -> None:
    substrings = read_substrings(("翻訳",), "banned")
    assert read_substrings(substrings, "banned") is substrings
    replacements = read_replacements(table(("甲", "乙")), "replacements")
    assert read_replacements(replacements, "replacements") is replacements
    assert read_replacements(list(replacements), "replacements") == replacements
    assert "entry 1 is Replacement(" in refusal_of(read_substrings, replacements, "banned")
    with pytest.raises(InputError, match="entry 3 is empty"):
        read_substrings([*substrings, "英訳", ""], "banned")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["翻訳", ""], r"entry 2 is empty: every text contains it.*Remove"),
        (["翻訳", "英訳", "翻訳"], r"entry 3 \('翻訳'\) repeats entry 1: remove one"),
        (["翻訳", 110], r"entry 2 is 110, not text: .*in quotes"),
        (["翻訳", True], r"entry 2 is True, not text: .*in quotes"),
        ([None], r"entry 1 is None, not text: .*in quotes"),
        ([["翻訳"]], r"entry 1 is \['翻訳'\], not text"),
        (None, r"'banned' is empty, not a list: .*or \[\]"),
        ("翻訳", r"'banned' is a str, not a list: .*or \[\]"),
        ({"翻訳": 1}, r"'banned' is a dict, not a list"),
    ],
)
def test_refused_substrings(entries, message) -> None:
    assert re.search(message, refusal_of(read_substrings, entries, "banned"))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"find": "", "replace": "a"}], r"entry 1 has an empty 'find', .*'a' between all"),
        (table(("甲", "乙"), ("甲", "丙")), r"entry 2 \('甲'\) repeats entry 1"),
        ([{"find": "♪"}], r"entry 1 lacks 'replace': .*'find' and 'replace'"),
        ([{}], r"lacks 'find' and lacks 'replace'"),
        ([{"find": "♪", "replase": ""}], r"lacks 'replace' and has the unknown key 'replase'"),
        ([{"find": "♪", "replace": "", 1: ""}], r"entry 1 has the unknown key 1"),
        ([{"find": "♪", "replace": None}], r"has None under 'replace', .*quotes \('' removes"),
        ([{"find": True, "replace": "一"}], r"has True under 'find', not text: .*in quotes$"),
        (["♪"], r"entry 1 is '♪': write a mapping"),
        ([("甲", "乙")], r"entry 1 is \('甲', '乙'\): write a mapping"),
        ({"♪": ""}, r"is a dict, not a list"),
        (table(("甲", "甲")), r"entry 1 replaces '甲' by itself, without effect"),
        (table(("甲", "丙甲")), r"entry 1 inserts '丙甲', which contains its own 'find' '甲'"),
    ],
)
def test_refused_replacements(entries, message) -> None:
    refusal = refusal_of(read_replacements, entries, "replacements")
    assert re.search(message, refusal)
    assert "problems" not in refusal, "one mistake gives one message"


def test_chain_names_both_lines_and_both_remedies() -> None:
    text = "\n\n- {find: 甲, replace: 丙乙}\n\n- {find: 丁, replace: 戊}\n- {find: 乙, replace: 己}"
    assert refusal_of(parse_word_list, text, "replacements", "table.yml") == (
        "table.yml:3 inserts '丙乙', in which line 6 replaces '乙' again: write the final text "
        "'丙己' under 'replace' of line 3, or move line 6 before line 3 to keep '丙乙'"
    )


@pytest.mark.parametrize(
    "remedied", [table(("甲", "丙己"), ("乙", "己")), table(("乙", "己"), ("甲", "丙乙"))]
)
def test_remedies_of_a_chain_are_accepted(remedied) -> None:
    assert len(read_replacements(remedied, "replacements")) == 2


def test_chain_that_leads_back_has_another_remedy() -> None:
    refusal = refusal_of(read_replacements, table(("甲", "乙"), ("乙", "甲")), "replacements")
    assert "remove one of the two" in refusal
    assert "before" not in refusal


def test_all_mistakes_are_listed_at_once() -> None:
    text = "- 一\n  二\n- 翻訳\n- ''\n- 3\n- 翻訳\n- 英訳\n- 英訳"
    first, *mistakes = refusal_of(parse_word_list, text, "substrings", "a.yml").splitlines()
    assert first == "a.yml has 5 problems:"
    assert [re.match(r"    - a\.yml:(\d) ", one).group(1) for one in mistakes] == list("14568")
    assert mistakes[-2].endswith("('翻訳') repeats line 3: remove one")

    entries = [{"find": "", "replace": ""}, *table(("甲", "乙"), ("乙", "丙"), ("丙", "丙丙"))]
    first, *mistakes = refusal_of(read_replacements, entries, "b").splitlines()
    assert [re.match(r"    - 'b', entry (\d) ", one).group(1) for one in mistakes] == list("142")


texts = st.text("甲乙丙", max_size=4)


def apply_with_origins(lines: Sequence[Replacement], text: str) -> tuple[str, bool]:
    """Apply a table one occurrence at a time, recording the entry that inserted each character.

    Returns the result, and whether an entry replaced a part that one entry had inserted.
    """
    characters: list[tuple[str, object]] = [(character, None) for character in text]
    fired_twice = False
    for find, replace in lines:
        position = 0
        while position + len(find) <= len(characters):
            piece = characters[position : position + len(find)]
            if "".join(character for character, _ in piece) != find:
                position += 1
                continue
            origins = {id(origin) for _, origin in piece}
            fired_twice |= len(origins) == 1 and piece[0][1] is not None
            chunk = object()
            inserted = [(character, chunk) for character in replace]
            characters[position : position + len(find)] = inserted
            position += len(inserted)
    return "".join(character for character, _ in characters), fired_twice


@given(pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=3), text=texts)
def test_an_accepted_table_never_replaces_what_it_inserted(pairs, text: str) -> None:
    try:
        lines = read_replacements(table(*pairs), "replacements")
    except InputError:
        assume(False)
    result, fired_twice = apply_with_origins(lines, text)
    assert not fired_twice
    for find, replace in lines:
        text = text.replace(find, replace)
    assert result == text


def test_the_property_sees_a_chain() -> None:
    chain = (Replacement("甲", "乙"), Replacement("乙", "丙"))
    assert apply_with_origins(chain, "甲") == ("丙", True)
    assert apply_with_origins(chain[::-1], "甲乙") == ("乙丙", False)
