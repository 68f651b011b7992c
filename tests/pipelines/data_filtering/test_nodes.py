"""What each step does to the pairs, their columns and their order."""

import copy
import logging
from datetime import datetime
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from filter_pairs import ANSWER, QUESTION, make_pairs, make_parameters, make_violations

from ja_instruct.errors import InputError
from ja_instruct.pipelines.data_filtering import nodes

LABEL = ClassLabel(names=["良", "悪"])
TURNS = List({"role": Value("string"), "content": Value("string")})


def extract(source: Any, **changes: Any) -> Dataset:
    return nodes.extract_pairs(source, make_parameters(**changes))[0]


def talk(*turns: tuple[str | None, str | None]) -> list[dict[str, str | None]]:
    return [{"role": role, "content": content} for role, content in turns]


def test_columns_of_the_source_keep_order_type_and_values() -> None:
    features = Features(
        {
            "response": Value("string"),
            "made": Value("timestamp[s]"),
            "conversations": TURNS,
            "label": LABEL,
            "scores": List(Value("float32")),
        }
    )
    row = {
        "response": "古い",
        "made": datetime(2024, 11, 22),
        "conversations": talk(("user", QUESTION), ("assistant", ANSWER)),
        "label": 1,
        "scores": [0.5],
    }
    source = Dataset.from_list([row], features=features)
    pairs = extract(source)
    others = [name for name in features if name != "response"]
    assert pairs.column_names == ["instruction", "response", *others]
    assert pairs[0] == row | {"instruction": QUESTION, "response": ANSWER}
    assert {name: pairs.features[name] for name in features} == features
    assert source.column_names == list(features)
    assert source[0] == row


def test_a_single_split_and_a_plain_list_are_read_too() -> None:
    rows = [{"conversations": talk(("user", QUESTION))}]
    for data in (rows, DatasetDict({"train": Dataset.from_list(rows)})):
        assert extract(data)["instruction"][:] == [QUESTION]


def test_a_source_without_conversations_is_refused() -> None:
    message = r"'raw_conversations' lacks .* conversations; it has text"
    with pytest.raises(InputError, match=message):
        extract(Dataset.from_dict({"text": [QUESTION]}))


@pytest.mark.parametrize(
    "conversations",
    ["問と答", {"role": "user", "content": "問"}, [["user", "問"]], [{"role": "a", "content": 3}]],
)
def test_conversations_of_another_shape_are_refused(conversations: Any) -> None:
    source = Dataset.from_dict({"conversations": [conversations]})
    with pytest.raises(InputError, match=r"'raw_conversations', record 1: .* list of turns"):
        extract(source)


def test_characters_are_counted_in_both_fields_and_the_space_between() -> None:
    pairs = make_pairs(("ああ", "い う"), ("い", "あ"))
    counted = nodes.find_rare_characters(pairs, make_parameters(rare_char_count_max=3))
    assert counted == {" ": 3, "あ": 3, "い": 2, "う": 1}
    counted = nodes.find_rare_characters(pairs, make_parameters(rare_char_count_max=2))
    assert counted == {"い": 2, "う": 1}
    assert nodes.find_rare_characters(pairs, make_parameters()) == {}


def test_replacements_run_in_order_on_both_fields() -> None:
    # one replacement joins 戊己 in the last response, a later one finds it
    pairs = make_pairs(("甲乙", "戊己戊己"), ("戊", "丁丙"), ("丙", "戊丙己"), id=[0, 1, 2])
    table = [("甲", "乙"), ("丙", ""), ("戊己", "庚"), ("戊", "辛")]
    replacements = [{"find": find, "replace": replace} for find, replace in table]
    cleaned, touched = nodes.apply_replacements(pairs, replacements)
    assert cleaned.to_list() == [
        {"instruction": "乙乙", "response": "庚庚", "id": 0},
        {"instruction": "辛", "response": "丁", "id": 1},
        {"instruction": "", "response": "庚", "id": 2},
    ]
    assert touched == {"甲": 1, "丙": 2, "戊己": 2, "戊": 1}
    assert pairs["instruction"][:] == ["甲乙", "戊", "丙"]


def test_all_cheap_rules_apply_and_cld2_only_to_the_pairs_left() -> None:
    pairs = make_pairs(
        (QUESTION, ANSWER),
        ("翻訳 岚 \x00", "要約翻訳" + ANSWER),
        ("要約" + QUESTION, ""),
        (QUESTION, "要約" + ANSWER),
        (QUESTION, ""),
        (QUESTION, "\x00"),
    )
    found = nodes.judge_pairs(
        pairs, make_violations(), {"岚": 1}, ["翻訳"], ["要約"], None, [], make_parameters()
    )
    assert list(found) == [
        (1, "banned_substring", "instruction", "翻訳"),
        (1, "banned_substring", "response", "翻訳"),
        (1, "rare_character", "instruction", "岚"),
        (2, "banned_instruction_substring", "instruction", "要約"),
        (4, "language", "response", "none"),
        (5, "language_undetectable", "response", found.table["matched"][-1].as_py()),
    ]


def test_word_lists_from_memory_are_checked() -> None:
    pairs = make_pairs((QUESTION, ANSWER))
    with pytest.raises(InputError, match=r"'banned_substrings', entry 1 is empty"):
        nodes.judge_pairs(pairs, make_violations(), {}, [""], [], None, [], make_parameters())
    with pytest.raises(InputError, match=r"'replacements', entry 1 .*'find'"):
        nodes.apply_replacements(pairs, [{"find": "", "replace": "a"}])


def test_survivors_are_counted_without_the_rejected() -> None:
    pairs = make_pairs(("甲乙", "丙"), ("甲乙", "丙"), ("甲", "丙"), ("丁", ""))
    first = make_violations((1, "language", "response", "none"), (3, "language", "response", "x"))
    found, rare = nodes.judge_survivors(pairs, first, make_parameters(survivor_char_count_min=2))
    assert rare == {"乙": 1}
    assert list(found) == [
        (0, "rare_survivor_character", "instruction", "乙"),
        (1, "language", "response", "none"),
        (3, "language", "response", "x"),
    ]
    _, rare = nodes.judge_survivors(pairs, first, make_parameters(survivor_char_count_min=3))
    assert rare == {" ": 2, "丙": 2, "乙": 1, "甲": 2}


def test_split_keeps_order_and_columns() -> None:
    pairs = make_pairs(
        *[(str(row), "") for row in range(5)], id=list(range(5)), reasons=list("abcde")
    )
    found = make_violations(
        (3, "language", "response", "none"),
        (1, "rare_character", "instruction", "岚"),
        (1, "rare_character", "instruction", "㌍"),
        (1, "banned_substring", "response", "翻訳"),
    )
    kept, dropped = nodes.split_pairs(pairs, found)
    assert kept["instruction"][:] == ["0", "2", "4"]
    assert kept.column_names == ["instruction", "response", "id", "reasons"]
    assert kept["reasons"][:] == ["a", "c", "e"]
    banned = {"rule": "banned_substring", "side": "response", "matched": ["翻訳"]}
    rare = {"rule": "rare_character", "side": "instruction", "matched": ["岚", "㌍"]}
    language = {"rule": "language", "side": "response", "matched": ["none"]}
    assert dropped.to_dict() == {
        "instruction": ["1", "3"],
        "response": ["", ""],
        "id": [1, 3],
        "reason": ["banned_substring", "language"],
        "reasons": [["banned_substring", "rare_character"], ["language"]],
        "reason_details": [[banned, rare], [language]],
    }


def test_a_warning_says_that_no_pair_is_left(caplog: pytest.LogCaptureFixture) -> None:
    pairs = make_pairs((QUESTION, ANSWER), (QUESTION, ""))
    against = [(row, "rare_character", "response", "岚") for row in (0, 1)]
    nodes.split_pairs(pairs, make_violations(against[1]))
    # other tests set the project's loggers to INFO
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    nodes.split_pairs(pairs, make_violations(*against))
    assert "lower rare_char_count_max" in caplog.text


BAD = {"source": "a.jsonl", "line": 7, "error": "not JSON", "text": "{"}


def test_bad_records_are_set_aside_up_to_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"id": 1, "conversations": talk(("user", "一")), "bad_record": None},
        # fields are read by name
        {"id": None, "conversations": None, "bad_record": dict(reversed(BAD.items()))},
        {"id": 2, "conversations": talk(("user", "二")), "bad_record": None},
    ]
    pairs, quarantined, _ = nodes.extract_pairs(
        Dataset.from_list(rows), make_parameters(bad_records_max=1)
    )
    assert pairs["instruction"][:] == ["一", "二"]
    assert pairs["id"][:] == [1, 2]
    assert "bad_record" not in pairs.column_names
    assert quarantined.to_list() == [BAD]
    assert "1 records could not be read" in caplog.text
    with pytest.raises(InputError, match=r"(?s)bad_records_max = 0.*a\.jsonl:7: not JSON.*raise"):
        extract(Dataset.from_list(rows))


def test_a_selection_of_rows_is_read_in_its_order() -> None:
    features = Features({"label": LABEL, "conversations": TURNS})
    rows = [{"label": n % 2, "conversations": talk(("user", str(n)))} for n in range(5)]
    source = Dataset.from_list(rows, features=features).select([4, 0, 3])
    pairs = extract(source)
    assert pairs["instruction"][:] == ["4", "0", "3"]
    assert pairs["label"][:] == [0, 0, 1]
    assert pairs.features["label"] == LABEL


def test_an_empty_source_gives_empty_results() -> None:
    features = Features({"id": Value("string"), "conversations": TURNS})
    source = Dataset.from_dict({"id": [], "conversations": []}, features=features)
    pairs, quarantined, _ = nodes.extract_pairs(source, make_parameters())
    assert quarantined.column_names == list(BAD)
    cleaned, touched = nodes.apply_replacements(pairs, [])
    parameters = make_parameters()
    found = nodes.judge_pairs(cleaned, make_violations(), {}, [], [], None, [], parameters)
    found, rare = nodes.judge_survivors(cleaned, found, parameters)
    kept, dropped = nodes.split_pairs(cleaned, found)
    assert kept.column_names == ["instruction", "response", "id", "conversations"]
    assert dropped.column_names == [*kept.column_names, "reason", "reasons", "reason_details"]
    report = nodes.report_filtering(
        pairs, cleaned, quarantined, found, rare, rare, touched, None, parameters
    )
    counts = ("read", "kept", "rejected", "kept_percent", "quarantined")
    assert report["summary"] == dict.fromkeys(counts, 0)


@pytest.mark.parametrize("multi_turn", ["all", "split"])
def test_an_empty_source_has_the_columns_of_its_mode(multi_turn: str) -> None:
    source = Dataset.from_dict({"conversations": []}, features=Features({"conversations": TURNS}))
    pairs = extract(source, multi_turn=multi_turn, system_turns="keep")
    cleaned, _ = nodes.apply_replacements(pairs, [])
    others = ["exchange"] if multi_turn == "split" else []
    for data in (pairs, cleaned):
        assert data.column_names == ["instruction", "response", "history", *others, "conversations"]


def test_no_input_is_changed() -> None:
    pairs = make_pairs((QUESTION, ANSWER), ("翻訳", "♪"))
    table = [{"find": "♪", "replace": ""}]
    found = make_violations((1, "language", "response", "none"))
    rare = {"岚": 1}
    parameters = make_parameters(survivor_char_count_min=9)
    before = copy.deepcopy((pairs.to_list(), table, list(found), rare))
    nodes.apply_replacements(pairs, table)
    nodes.judge_pairs(pairs, make_violations(), rare, ["翻訳"], [], None, [], parameters)
    nodes.judge_survivors(pairs, found, parameters)
    nodes.split_pairs(pairs, found)
    nodes.report_filtering(pairs, pairs, pairs, found, rare, rare, {}, None, parameters)
    assert (pairs.to_list(), table, list(found), rare) == before
