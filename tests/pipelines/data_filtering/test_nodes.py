"""What each step does to the pairs, their columns and their order."""

import copy
import json
import logging
from datetime import datetime
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from ja_instruct.errors import InputError
from ja_instruct.pipelines.data_filtering import nodes
from ja_instruct.pipelines.data_filtering.columns import build_verdicts
from ja_instruct.pipelines.data_filtering.parameters import DataFilteringParameters
from ja_instruct.pipelines.data_filtering.rules import RULES, Rejection, WordLists

QUESTION = "日本の首都はどこですか。"
ANSWER = "日本の首都は東京です。"
NO_LISTS = WordLists((), (), ())


def make_parameters(**changes: Any) -> DataFilteringParameters:
    figures = {
        "rare_char_count_max": 0,
        "survivor_char_count_min": 0,
        "language": "ja",
        "language_percent_min": 60,
    }
    return DataFilteringParameters.model_validate(figures | changes)


def make_pairs(*pairs: tuple[str, str], **columns: list[Any]) -> Dataset:
    instructions, responses = zip(*pairs, strict=True)
    rows = {"instruction": list(instructions), "response": list(responses)}
    return Dataset.from_dict(rows | {"id": list(range(len(pairs)))} | columns)


def talk(*turns: tuple[str | None, str | None]) -> list[dict[str, str | None]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize(
    ("turns", "instruction", "response"),
    [
        (talk(("user", "問"), ("assistant", "答")), "問", "答"),
        (talk(("assistant", "先"), ("system", "設"), ("user", "問")), "問", "先"),
        (
            talk(("user", "一"), ("assistant", "二"), ("user", "三"), ("assistant", "四")),
            "一",
            "二",
        ),
        (talk(("user", None), ("user", "後"), ("assistant", "答")), "", "答"),
        (talk((None, "無"), ("assistant", None)), "", ""),
        (talk(("user", "  問\u2028𠮷\x0b"), ("assistant", "")), "  問\u2028𠮷\x0b", ""),
        ([{"content": "無"}, {"role": "user"}, None], "", ""),
        ([], "", ""),
        (None, "", ""),
    ],
)
def test_a_pair_is_the_first_turn_of_each_side(
    turns: list[Any] | None, instruction: str, response: str
) -> None:
    full = talk(("user", "型"), ("assistant", "型"))
    pairs = nodes.extract_pairs(Dataset.from_list([{"conversations": c} for c in (full, turns)]))
    assert pairs[1]["instruction"] == instruction
    assert pairs[1]["response"] == response


def test_the_source_columns_keep_order_type_and_values() -> None:
    features = Features(
        {
            "response": Value("string"),
            "made": Value("timestamp[s]"),
            "conversations": List({"role": Value("string"), "content": Value("string")}),
            "label": ClassLabel(names=["良", "悪"]),
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
    pairs = nodes.extract_pairs(source)
    assert pairs.column_names == [
        "instruction",
        "response",
        "made",
        "conversations",
        "label",
        "scores",
    ]
    assert pairs[0] == row | {"instruction": QUESTION, "response": ANSWER}
    assert {name: pairs.features[name] for name in features} == features
    assert source.column_names == list(features)
    assert source[0] == row


def test_a_single_split_and_a_plain_list_are_read_too() -> None:
    rows = [{"conversations": talk(("user", QUESTION))}]
    for data in (rows, DatasetDict({"train": Dataset.from_list(rows)})):
        assert nodes.extract_pairs(data)["instruction"][:] == [QUESTION]


def test_a_source_without_conversations_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"'raw_conversations' lacks .* conversations; it has text"
    ):
        nodes.extract_pairs(Dataset.from_dict({"text": [QUESTION]}))


@pytest.mark.parametrize(
    "conversations",
    [
        "問と答",
        {"role": "user", "content": "問"},
        [["user", "問"]],
        [{"role": "user", "content": 3}],
    ],
)
def test_conversations_of_another_shape_are_refused(conversations: Any) -> None:
    source = Dataset.from_dict({"conversations": [conversations]})
    with pytest.raises(InputError, match=r"'raw_conversations', record 1: .* list of turns"):
        nodes.extract_pairs(source)


def test_characters_are_counted_over_both_sides_and_the_space_between() -> None:
    pairs = make_pairs(("ああ", "い う"), ("い", "あ"))
    counted = nodes.find_rare_characters(pairs, make_parameters(rare_char_count_max=3))
    assert counted == {" ": 3, "あ": 3, "い": 2, "う": 1}
    counted = nodes.find_rare_characters(pairs, make_parameters(rare_char_count_max=2))
    assert counted == {"い": 2, "う": 1}
    assert nodes.find_rare_characters(pairs, make_parameters()) == {}


def test_a_character_at_the_recipes_figure_is_rare_and_one_above_is_not() -> None:
    pairs = make_pairs(("甲" * 19, "乙" * 20), *[("", "")] * 19)
    rare = nodes.find_rare_characters(pairs, make_parameters(rare_char_count_max=19))
    assert rare == {"甲": 19}


def test_replacements_run_in_order_on_both_sides() -> None:
    pairs = make_pairs(("甲乙", "乙"), ("丙", "丁"), other=["甲", None])
    table = [("甲", "乙"), ("乙乙", "丙"), ("乙", "")]
    lists = nodes.check_word_lists([{"find": f, "replace": r} for f, r in table], [], [])
    cleaned, touched = nodes.apply_replacements(pairs, lists)
    assert cleaned.to_list() == [
        {"instruction": "丙", "response": "", "id": 0, "other": "甲"},
        {"instruction": "丙", "response": "丁", "id": 1, "other": None},
    ]
    assert touched == {"甲": 1, "乙乙": 1, "乙": 1}
    assert pairs["instruction"][:] == ["甲乙", "丙"]


def test_a_pair_is_judged_by_all_rules_in_their_order() -> None:
    pairs = make_pairs(
        (QUESTION, ANSWER),
        ("翻訳 岚 \x00", "要約" + ANSWER),
        ("要約" + QUESTION, ""),
        (QUESTION, "要約" + ANSWER),
    )
    lists = WordLists((), ("翻訳",), ("要約",))
    verdicts = nodes.judge_pairs(pairs, {"岚": 1}, lists, make_parameters())
    assert verdicts["reasons"][:] == [
        [],
        ["banned_substring", "rare_character", "language_undetectable"],
        ["banned_instruction_substring", "language"],
        [],
    ]
    assert verdicts["reason"][:] == [None, "banned_substring", "banned_instruction_substring", None]
    assert verdicts["reason_details"][1][:2] == ["翻訳 (instruction)", "岚 U+5C9A (instruction)"]


def test_survivors_are_counted_without_the_rejected() -> None:
    pairs = make_pairs(("甲乙", "丙"), ("甲乙", "丙"), ("甲", "丙"), ("丁", ""))
    first = build_verdicts([[], [Rejection("language", "none")], [], [Rejection("language", "x")]])
    verdicts, rare = nodes.judge_survivors(pairs, first, make_parameters(survivor_char_count_min=2))
    assert rare == {"乙": 1}
    assert verdicts["reason"][:] == ["rare_survivor_character", "language", None, "language"]
    assert verdicts["reason_details"][0] == ["乙 U+4E59 (instruction)"]
    _, rare = nodes.judge_survivors(pairs, first, make_parameters(survivor_char_count_min=3))
    assert rare == {" ": 2, "丙": 2, "乙": 1, "甲": 2}


def test_split_keeps_order_and_columns() -> None:
    pairs = make_pairs(*[(str(row), "") for row in range(5)], reasons=list("abcde"))
    against = [Rejection("language", "none"), Rejection("rare_character", "x")]
    kept, dropped = nodes.split_pairs(pairs, build_verdicts([[], against, [], against[:1], []]))
    assert kept["instruction"][:] == ["0", "2", "4"]
    assert kept.column_names == ["instruction", "response", "id", "reasons"]
    assert kept["reasons"][:] == ["a", "c", "e"]
    assert dropped.to_list() == [
        {
            "instruction": "1",
            "response": "",
            "id": 1,
            "reason": "language",
            "reasons": ["language", "rare_character"],
            "reason_details": ["none", "x"],
        },
        {
            "instruction": "3",
            "response": "",
            "id": 3,
            "reason": "language",
            "reasons": ["language"],
            "reason_details": ["none"],
        },
    ]


def test_nothing_left_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    pairs = make_pairs((QUESTION, ANSWER), (QUESTION, ""))
    against = [Rejection("rare_character", "x")]
    nodes.split_pairs(pairs, build_verdicts([[], against]))
    # other tests leave the project's loggers at INFO
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    nodes.split_pairs(pairs, build_verdicts([against, against]))
    assert "lower rare_char_count_max" in caplog.text


def test_the_report_counts_what_happened() -> None:
    before = make_pairs(*[("甲" * length, "♪") for length in (1, 2, 3, 300)])
    after = make_pairs(*[("甲" * length, "") for length in (1, 2, 3, 300)])
    both = [Rejection("language", "none (response)"), Rejection("rare_character", "甲")]
    verdicts = build_verdicts([[], both, both[1:], both])
    inputs = (before, after, verdicts, {"\x0b": 1, "岚": 2}, {"乙": 3}, {"♪": 4})
    report = nodes.report_filtering(*inputs)
    zero = dict.fromkeys(RULES, 0)
    assert report["summary"] == {"read": 4, "kept": 1, "rejected": 3, "kept_percent": 25.0}
    assert report["rejected_by_rule"] == zero | {"language": 2, "rare_character": 3}
    assert report["rejected_by_first_rule"] == zero | {"language": 2, "rare_character": 1}
    assert report["replacements"] == {"♪": 4}
    assert report["rare_characters"] == {"count": 2, "characters": "\x0b岚"}
    assert report["rare_survivor_characters"] == {"count": 1, "characters": "乙"}
    assert report["examples"]["language"] == [
        {"detail": "none (response)", "instruction": "甲甲", "response": ""},
        {"detail": "none (response)", "instruction": "甲" * 200, "response": ""},
    ]
    assert report["lengths"]["before"]["instruction"]["mean"] == 76.5
    assert report["lengths"]["before"]["instruction"]["median"] == 2.5
    assert report["lengths"]["before"]["response"]["p95"] == 1
    assert report["lengths"]["after"]["instruction"] == {"mean": 1, "median": 1, "p95": 1}
    assert json.loads(json.dumps(report)) == report


def test_the_report_shows_three_examples_of_a_rule() -> None:
    pairs = make_pairs(*[(str(row), "") for row in range(5)])
    verdicts = build_verdicts([[Rejection("language", "none")]] * 5)
    report = nodes.report_filtering(pairs, pairs, verdicts, {}, {}, {})
    assert [example["instruction"] for example in report["examples"]["language"]] == list("012")


def test_a_source_without_records_gives_empty_results() -> None:
    features = Features(
        {
            "id": Value("string"),
            "conversations": List({"role": Value("string"), "content": Value("string")}),
        }
    )
    source = Dataset.from_dict({"id": [], "conversations": []}, features=features)
    pairs = nodes.extract_pairs(source)
    cleaned, touched = nodes.apply_replacements(pairs, NO_LISTS)
    parameters = make_parameters()
    verdicts = nodes.judge_pairs(cleaned, {}, NO_LISTS, parameters)
    verdicts, rare = nodes.judge_survivors(cleaned, verdicts, parameters)
    kept, dropped = nodes.split_pairs(cleaned, verdicts)
    assert kept.column_names == ["instruction", "response", "id", "conversations"]
    assert dropped.column_names == [*kept.column_names, "reason", "reasons", "reason_details"]
    report = nodes.report_filtering(pairs, cleaned, verdicts, rare, rare, touched)
    assert report["summary"] == {"read": 0, "kept": 0, "rejected": 0, "kept_percent": 0.0}


def test_no_input_is_changed() -> None:
    pairs = make_pairs((QUESTION, ANSWER), ("翻訳", "♪"))
    lists = nodes.check_word_lists([{"find": "♪", "replace": ""}], ["翻訳"], [])
    verdicts = build_verdicts([[], [Rejection("language", "none")]])
    rare = {"岚": 1}
    before = copy.deepcopy((pairs.to_list(), lists, verdicts.to_list(), rare))
    nodes.apply_replacements(pairs, lists)
    nodes.judge_pairs(pairs, rare, lists, make_parameters())
    nodes.judge_survivors(pairs, verdicts, make_parameters(survivor_char_count_min=9))
    nodes.split_pairs(pairs, verdicts)
    nodes.report_filtering(pairs, pairs, verdicts, rare, rare, {})
    assert (pairs.to_list(), lists, verdicts.to_list(), rare) == before
