"""Which word lists are refused, by what name, and what an accepted table promises."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ja_instruct.errors import InputError
from ja_instruct.tables.word_lists import (
    Replacement,
    find_covered,
    read_replacements,
    read_substrings,
)


def table(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"find": find, "replace": replace} for find, replace in pairs]


def refusal_of(read, entries, name="replacements", lines=None, **found) -> str:
    with pytest.raises(InputError) as caught:
        read(entries, name, lines, **found)
    return str(caught.value)


def test_substrings_keep_their_order_and_their_spaces() -> None:
    entries = ["翻訳", " - Arigatou ", "yes", "\n"]
    assert read_substrings(entries, "banned") == tuple(entries)
    assert read_substrings([], "banned") == ()


def test_replacements_keep_their_order() -> None:
    pairs = [("♪", ""), ("よしmitsu", "よしみつ"), (" ", "　")]
    read = read_replacements(table(*pairs), "replacements")
    assert read == tuple(Replacement(*pair) for pair in pairs)
    assert read_replacements([], "replacements") == ()


def test_lists_can_be_asked_twice() -> None:
    substrings = read_substrings(["翻訳"], "banned")
    assert read_substrings(substrings, "banned") == substrings
    replacements = read_replacements(table(("甲", "乙")), "replacements")
    assert read_replacements(replacements, "replacements") == replacements
    assert read_replacements(list(replacements), "replacements") == replacements


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["翻訳", ""], r"entry 2 is empty: every text contains it.*Remove"),
        (["翻訳", "英訳", "翻訳"], r"entry 3 \('翻訳'\) repeats entry 1: remove one"),
        (["翻訳", 110], r"entry 2 is 110, not a text: .*in quotes"),
        (["翻訳", True], r"entry 2 is True, not a text: .*in quotes"),
        ([None], r"entry 1 is None, not a text: .*in quotes"),
        ([["翻訳"]], r"entry 1 is \['翻訳'\], not a text"),
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
        ([{"find": True, "replace": "一"}], r"has True under 'find', not a text: .*in quotes$"),
        (["♪"], r"entry 1 is '♪': write a mapping"),
        ([("甲", "乙")], r"entry 1 is \('甲', '乙'\): write a mapping"),
        ({"♪": ""}, r"is a dict, not a list"),
        (table(("甲", "甲")), r"entry 1 replaces '甲' by itself, which changes nothing"),
        (table(("甲", "丙甲")), r"entry 1 puts in '丙甲', which holds its own 'find' '甲'"),
    ],
)
def test_refused_replacements(entries, message) -> None:
    refusal = refusal_of(read_replacements, entries)
    assert re.search(message, refusal)
    assert "problems" not in refusal, "one fault must be told once"


def test_chain_names_both_lines_and_both_remedies() -> None:
    entries = table(("甲", "丙乙"), ("丁", "戊"), ("乙", "己"))
    assert refusal_of(read_replacements, entries, "table.yml", [3, 5, 9]) == (
        "table.yml:3 puts in '丙乙', in which line 9 replaces '乙' again: write what is meant in "
        "the end, '丙己', under 'replace' of line 3, or put line 9 before line 3 if '丙乙' is to "
        "stay"
    )


@pytest.mark.parametrize(
    "remedied", [table(("甲", "丙己"), ("乙", "己")), table(("乙", "己"), ("甲", "丙乙"))]
)
def test_remedies_of_a_chain_are_accepted(remedied) -> None:
    assert len(read_replacements(remedied, "replacements")) == 2


def test_chain_that_leads_back_has_another_remedy() -> None:
    refusal = refusal_of(read_replacements, table(("甲", "乙"), ("乙", "甲")))
    assert "remove one of the two" in refusal
    assert "before" not in refusal


def test_every_fault_is_told_at_once_by_line() -> None:
    entries = ["翻訳", "", 3, "翻訳", "英訳", "英訳"]
    refusal = refusal_of(read_substrings, entries, "a.yml", [2, 4, 5, 7, 8, 9], found=["a.yml:1 x"])
    first, *faults = refusal.splitlines()
    assert first == "a.yml has 5 problems:"
    assert [re.match(r"    - a\.yml:(\d) ", fault).group(1) for fault in faults] == list("14579")
    assert faults[-2].endswith("('翻訳') repeats line 2: remove one")

    entries = [{"find": "", "replace": ""}, *table(("甲", "乙"), ("乙", "丙"), ("丙", "丙丙"))]
    refusal = refusal_of(read_replacements, entries, "b.yml", [1, 3, 5, 7])
    places = [fault.split()[1] for fault in refusal.splitlines()[1:]]
    assert places == ["b.yml:1", "b.yml:7", "b.yml:3"]


def test_what_the_reader_of_the_file_found_is_enough_to_refuse() -> None:
    assert refusal_of(read_substrings, ["翻訳"], found=["a.yml:1 is odd"]) == "a.yml:1 is odd"
    assert refusal_of(read_replacements, [], found=["a.yml:1 is odd"]) == "a.yml:1 is odd"
    assert "a.yml:1 is odd" in refusal_of(read_substrings, None, found=["a.yml:1 is odd"])


def test_covered_substrings_are_accepted_and_found() -> None:
    entries = ["英語訳", "翻訳", "英語", "語"]
    assert read_substrings(entries, "banned") == tuple(entries)
    assert find_covered(entries) == {"英語訳": "英語", "英語": "語"}


texts = st.text("甲乙丙", max_size=4)
texts_of_entries = st.lists(st.text("甲乙", max_size=4), max_size=6)


@given(entries=texts_of_entries, text=st.text("甲乙", max_size=8))
def test_covered_substrings_ban_nothing_more(entries: list[str], text: str) -> None:
    rest = set(entries) - set(find_covered(entries))
    assert any(entry in text for entry in entries) == any(entry in text for entry in rest)


def apply_with_origins(lines: tuple[Replacement, ...], text: str) -> tuple[str, bool]:
    """Apply a table one occurrence at a time, knowing of each character which line put it in.

    Returns the result, and whether a line ever replaced what one other line had put in as a whole.
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
            put_in = [(character, chunk) for character in replace]
            characters[position : position + len(find)] = put_in
            position += len(put_in)
    return "".join(character for character, _ in characters), fired_twice


@given(pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=3), text=texts)
def test_an_accepted_table_never_replaces_what_it_put_in(pairs, text: str) -> None:
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
