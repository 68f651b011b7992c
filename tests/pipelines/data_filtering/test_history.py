"""The rules on the turns before a pair."""

from typing import Any

import pytest
from datasets import Dataset
from filter_pairs import (
    ANSWER,
    QUESTION,
    make_character_tokenizer,
    make_parameters,
    read_real_conversations,
)

from ja_instruct.pipelines.data_filtering import nodes
from ja_instruct.pipelines.data_filtering.violations import Violations

LONG = "今日は晴れです。明日は雨が降るでしょう。" * 3


def talk(*turns: str) -> dict[str, Any]:
    """Return a conversation of user and assistant turns, after a system turn if odd in number."""
    roles = ["user", "assistant"] * (len(turns) // 2)
    roles = ["system", *roles] if len(turns) % 2 else roles
    pairs = zip(roles, turns, strict=True)
    return {"conversations": [{"role": role, "content": text} for role, text in pairs]}


def extract(*talks: dict[str, Any], **changes: Any) -> tuple[Dataset, Violations]:
    figures = {"multi_turn": "all", "system_turns": "keep"} | changes
    source = Dataset.from_list(list(talks))
    pairs, _, violations = nodes.extract_pairs(source, make_parameters(**figures))
    return pairs, violations


def judge(*talks: dict[str, Any], banned: Any = (), tasks: Any = (), **changes: Any) -> list[Any]:
    """Return the violations as (row, rule, place, matched)."""
    pairs, found = extract(*talks)
    parameters = make_parameters(**changes)
    lists = ({}, list(banned), ["要約"], make_character_tokenizer(), list(tasks))
    found = nodes.judge_pairs(pairs, found, *lists, parameters)
    return list(nodes.judge_survivors(pairs, found, parameters)[0])


def test_replacements_apply_to_every_turn() -> None:
    pairs, _ = extract(talk("甲", "乙甲", "甲甲", "乙", "甲"), talk("乙", "乙"))
    cleaned, touched = nodes.apply_replacements(pairs, [{"find": "甲", "replace": "丙"}])
    texts = [[turn["content"] for turn in turns] for turns in cleaned["history"]]
    assert texts == [["丙", "乙丙", "丙丙"], []]
    assert (cleaned["instruction"][:], cleaned["response"][:]) == (["乙", "乙"], ["丙", "乙"])
    assert [turn["role"] for turn in cleaned["history"][0]] == ["system", "user", "assistant"]
    assert touched == {"甲": 1}


def test_characters_of_every_turn_are_counted() -> None:
    pairs, _ = extract(talk("甲", "乙", "甲", "乙", "丙"), talk("甲", "丙"))
    counted = nodes.find_rare_characters(pairs, make_parameters(rare_char_count_max=9))
    assert counted == {" ": 5, "丙": 2, "乙": 2, "甲": 3}


def test_rules_on_single_texts() -> None:
    found = judge(
        talk(QUESTION, ANSWER, QUESTION, ANSWER),
        talk("翻訳" + QUESTION, ANSWER, QUESTION, ANSWER),
        talk("要約" + QUESTION, "要約" + ANSWER, QUESTION, ANSWER),
        talk(ANSWER + "[1]", QUESTION, ANSWER, QUESTION, ANSWER),
        talk(LONG + "日本の首都", LONG + "日本の首都は", QUESTION, ANSWER),
        banned=["翻訳"],
        extra_rules=["citation_mark", "cut_off"],
    )
    assert [violation[:3] for violation in found] == [
        (1, "banned_substring", "history"),
        (2, "banned_instruction_substring", "history"),
        (3, "citation_mark", "history"),
        (4, "cut_off", "history"),
    ]


@pytest.mark.parametrize("place", range(5))
def test_cld2_detects_the_language_of_every_turn(place: int) -> None:
    turns = [ANSWER, QUESTION, ANSWER, QUESTION, ANSWER]
    assert judge(talk(*turns)) == []
    turns[place] = "The capital of Japan is Tokyo, which is a large city."
    ((row, rule, side, matched),) = judge(talk(*turns))
    assert (row, rule) == (0, "language")
    assert side == ["history", "history", "history", "instruction", "response"][place]
    assert "en" in matched


def test_tokens_of_every_turn_are_counted() -> None:
    long = talk(QUESTION, ANSWER, QUESTION, ANSWER)
    rules = {"extra_rules": ["token_count"]}
    counts = [len(QUESTION + ANSWER), len(QUESTION), len(ANSWER)]
    assert judge(long, pair_tokens_max=sum(counts), **rules) == []
    matched = f"{' + '.join(map(str, counts))} > {sum(counts) - 1}"
    found = judge(long, pair_tokens_max=sum(counts) - 1, **rules)
    assert found == [(0, "token_count", "history", matched)]


def test_a_task_in_an_earlier_turn_is_contamination() -> None:
    long = talk(LONG, ANSWER, QUESTION, ANSWER)
    found = judge(long, tasks=[{"task_id": 1, "input": LONG}], extra_rules=["contamination"])
    assert [violation[:3] for violation in found] == [(0, "contamination", "history")]


@pytest.mark.parametrize("rule", ["exact_duplicate", "near_duplicate"])
def test_duplicates_have_the_same_history(rule: str) -> None:
    other = "空はなぜ青いのですか。海はなぜ青いのですか。"
    found = judge(
        talk(LONG, LONG, ANSWER, QUESTION, ANSWER),
        talk(LONG, other, ANSWER, QUESTION, ANSWER),
        talk(ANSWER, other, ANSWER, QUESTION, ANSWER),
        extra_rules=[rule],
    )
    # system turns do not count
    assert [violation[:2] for violation in found] == [(2, rule)]


def test_a_record_with_an_unexpected_turn_is_rejected() -> None:
    tool = talk(QUESTION, ANSWER, QUESTION, ANSWER)
    tool["conversations"][1]["role"] = "tool"
    assert judge(tool, talk(QUESTION, ANSWER)) == [(0, "unexpected_turn", "pair", "tool")]
    kept, rejected = nodes.split_pairs(*extract(tool, talk(QUESTION, ANSWER)))
    assert (len(kept), rejected["reason"][:]) == (1, ["unexpected_turn"])
    assert rejected["history"][0] == []


def test_the_report_counts_conversations_and_shows_the_history() -> None:
    talks = [talk("翻訳" + QUESTION, ANSWER, QUESTION, ANSWER), talk(QUESTION, ANSWER)]
    for mode, key, count, side in (
        ("all", "history_turns", 2, "history"),
        ("split", "conversations", 2, "instruction"),
    ):
        figures = {"multi_turn": mode, "system_turns": "drop"}
        pairs, found = extract(*talks, **figures)
        parameters = make_parameters(**figures)
        found = nodes.judge_pairs(pairs, found, {}, ["翻訳"], [], None, [], parameters)
        report = nodes.report_filtering(
            pairs, pairs, pairs.select([]), found, {}, {}, {}, None, parameters
        )
        assert report["summary"][key] == count
        assert len(report["summary"].keys() & {"history_turns", "conversations"}) == 1
        (example,) = report["examples"]["banned_substring"]
        assert example["side"] == side
        assert "翻訳" in example[side]


def test_every_mode_gives_the_pairs_of_conversations_with_one_exchange() -> None:
    source = Dataset.from_list(read_real_conversations()[::50])
    recipe, _, _ = nodes.extract_pairs(source, make_parameters())
    for multi_turn in ("last", "all", "split"):
        pairs, _, violations = nodes.extract_pairs(source, make_parameters(multi_turn=multi_turn))
        assert pairs.select_columns(recipe.column_names).to_list() == recipe.to_list()
        assert not len(violations)
