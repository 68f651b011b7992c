"""Which word lists are rejected, with which message, and the promise of an accepted table."""

import re
from collections.abc import Sequence

import pytest
import yaml
from hypothesis import assume, example, given
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
    assert "entry 1 is {'find'" in refusal_of(read_substrings, replacements, "banned")
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
    for remedied in (table(("甲", "丙己"), ("乙", "己")), table(("乙", "己"), ("甲", "丙乙"))):
        assert len(read_replacements(remedied, "replacements")) == 2
    refusal = refusal_of(read_replacements, table(("甲", "乙"), ("乙", "甲")), "replacements")
    assert refusal.endswith("a second run would change the text again: remove one of the two")


def test_all_mistakes_are_listed_at_once() -> None:
    text = "- 一\n  二\n- 翻訳\n- ''\n- 3\n- 翻訳\n- 英訳\n- 英訳"
    first, *mistakes = refusal_of(parse_word_list, text, "substrings", "a.yml").splitlines()
    assert first == "a.yml has 5 problems:"
    assert [re.match(r"    - a\.yml:(\d) ", one).group(1) for one in mistakes] == list("14568")
    assert mistakes[-2].endswith("('翻訳') repeats line 3: remove one")


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


def parse(text, kind="substrings"):
    return parse_word_list(text, kind, "a.yml")


def refusal_of_file(text, kind="substrings"):
    return refusal_of(parse_word_list, text, kind, "a.yml")


def test_substrings_of_a_file() -> None:
    text = '# 翻訳\n\n- "翻訳"\n- 英訳  # 訳\n- " - a "\n- "\\u0942"\n- |-\n  一\n  二\n'
    assert parse(text) == ["翻訳", "英訳", " - a ", "\u0942", "一\n二"]
    assert parse("# 空\n[]\n") == []


def test_replacements_of_a_file() -> None:
    text = '# 直す\n- find: "松下"\n  replace: "三菱"\n- {replace: "", find: "♪"}\n'
    assert parse(text, "replacements") == [Replacement("松下", "三菱"), Replacement("♪", "")]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        *[(text, "empty") for text in ("", "# - 翻訳\n", "null\n", "---\n")],
        ("翻訳: 英訳\n", "a mapping"),
        ("翻訳\n", "a single value"),
    ],
)
def test_file_without_a_list(text, what) -> None:
    assert f"a.yml is {what}, not a list: " in (message := refusal_of_file(text))
    assert "[] for an empty list" in message


@pytest.mark.parametrize(
    "wrong", ["yes", "3", "null", "~", "1_000", "2024-13-45", "1:30", "[翻訳]", "# 二"]
)
def test_values_other_than_text_are_shown_as_in_the_file(wrong) -> None:
    message = refusal_of_file(f"# 一\n- 翻訳\n\n- {wrong}\n")
    shown = {"[翻訳]": "a list within the list", "# 二": "nothing"}.get(wrong, wrong)
    assert f"a.yml:4 is {shown}, not text" in message
    assert "put it in quotes" in message
    assert parse(f'# 一\n- 翻訳\n\n- "{wrong}"\n') == ["翻訳", wrong]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('- "一"\n- "二"三"\n', 2),
        ("# 一\n\n- *二\n", 3),
        ("- 一\n- @二\n", 2),
        ('- "一"\n  "二"\n', 2),
        ("- 一\n-二\n- 三\n", 3),
        ('- "一\\d"\n', 1),
        ("- 一\n---\n- 二\n", 2),
        ("- 一\n\t- 二\n", 2),
    ],
)
def test_invalid_yaml_names_line_and_remedy(text, line) -> None:
    message = refusal_of_file(text)
    assert re.search(rf"a\.yml:{line}: not valid YAML \(.+\); .*put in quotes", message)


def test_control_character() -> None:
    message = refusal_of_file("- 一\n- 二\x01\n")
    assert re.search(r"a\.yml:2: contains the control character U\+0001.*\\x01", message)
    assert parse('- "二\\x01"\n') == ["二\x01"]


@pytest.mark.parametrize(
    "text", ["- 一\n- 二\n  三\n", '- 一\n- "二\n  三"\n', "- 一\n- '二\n\n  三'\n"]
)
def test_entries_that_yaml_would_join(text) -> None:
    message = refusal_of_file(text)
    assert re.search(r"a\.yml:2 continues in line [34], and YAML joins .*begin every", message)


def test_mapping_that_lacks_its_dash() -> None:
    text = "- find: 一\n  replace: 二\n  find: 三\n  replace: 四\n"
    message = refusal_of_file(text, "replacements")
    assert re.search(r"a\.yml:1 has 'find' and 'replace' more than once: begin every", message)


def test_all_mistakes_of_a_table_are_listed_at_once() -> None:
    text = (
        "# 直す\n- {find: 甲, replace: 乙}\n- {find: yes, replace: 一}\n\n"
        "- {find: 乙, replace: 丙}\n- find: 丁\n  replace: 戊\n    己\n"
    )
    first, *mistakes = refusal_of_file(text, "replacements").splitlines()
    assert first == "a.yml has 3 problems:"
    assert "a.yml:3 has yes under 'find', not text" in mistakes[0]
    assert "a.yml:7 continues in line 8" in mistakes[1]
    assert "a.yml:2 inserts '乙', in which line 5 replaces '乙' again" in mistakes[2]


def test_list_of_the_other_kind() -> None:
    assert "write a mapping" in refusal_of_file("- 一\n", "replacements")
    assert "not text" in refusal_of_file("- find: 一\n  replace: 二\n")


@given(entries=st.lists(st.text(min_size=1), unique=True))
@example(
    entries=["\u2028", "\x85", "\ufeff", "\x00", "'", '"', "\\", "\n", " 一 ", "𠮷", "#", "- a"]
)
def test_every_text_can_be_written_in_quotes(entries) -> None:
    text = yaml.safe_dump(entries, default_style='"', allow_unicode=True, width=10**6)
    assert parse(text) == entries


PIECES = ["- ", "\n- ", "\n", " ", '"', "'", "#", ": ", "|", ">", *"[]{},", "&a", "*a"]
TEXTS = ["一", "yes", "3", "~", "2024-01-01", "!!int ", "!!str ", "<<", "=", "\t", "\x01", "\\"]


@pytest.mark.parametrize("kind", ["substrings", "replacements"])
@given(parts=st.lists(st.sampled_from([*PIECES, *TEXTS, "find: ", "replace: "]), max_size=14))
def test_file_is_read_as_yaml_reads_it_or_rejected(kind, parts) -> None:
    text = "- " + "".join(parts)
    try:
        entries = parse(text, kind)
    except InputError:
        return
    plain = [entry._asdict() if kind == "replacements" else entry for entry in entries]
    assert plain == yaml.safe_load(text)
