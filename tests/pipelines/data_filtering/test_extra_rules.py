"""The rules beyond the recipe, each with a pair that it drops and one that it keeps."""

from typing import Any, get_args

import filter_pairs
import numpy as np
import pytest
from datasets import Dataset
from filter_pairs import ANSWER, QUESTION, make_pairs, make_violations
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from ja_instruct.errors import InputError
from ja_instruct.pipelines.data_filtering import extra_rules, nodes
from ja_instruct.pipelines.data_filtering.extra_rules import find_duplicates, measure_token_counts
from ja_instruct.pipelines.data_filtering.parameters import DataFilteringParameters, ExtraRule
from ja_instruct.pipelines.data_filtering.violations import RULES

CHINESE = "我们今天在这里学习如何使用计算机编写程序并且分析数据结果"
CUT_OFF = "日本の首都は、明治になってから京都から移された東京で、"
REPEATED = "首都は東京という都市になります。"
STORY = "クマが海辺でアザラシと友達になる短編小説を書いてください。"
TASK = {"task_id": 7, "input": STORY}


def make_parameters(*rules: str, **changes: Any) -> DataFilteringParameters:
    figures = {
        "language_percent_min": 0,
        "extra_rules": rules,
        "response_tokens_min": 2,
        "pair_tokens_max": 60,
        "contamination_ngram_chars": 18,
        "contamination_stock_texts_max": 10,
    }
    return filter_pairs.make_parameters(**(figures | changes))


def judge(
    pairs: Dataset, *rules: str, tokenizer: Any = None, tasks: Any = (TASK,), **changes: Any
) -> list[tuple[int, str, str, str]]:
    parameters = make_parameters(*rules, **changes)
    tasks = Dataset.from_list(list(tasks))
    found = nodes.judge_pairs(pairs, make_violations(), {}, [], [], tokenizer, tasks, parameters)
    return [tuple(violation) for violation in found if not violation.rule.startswith("language")]


SPOILT = {
    "citation_mark": (QUESTION, ANSWER + "人口は約1400万人です[3]。", "[3]"),
    "cut_off": (QUESTION, CUT_OFF, CUT_OFF),
    "repetition": (QUESTION, REPEATED * 20, f"{REPEATED} ×20"),
    "kana_share": (QUESTION, ANSWER + CHINESE, CHINESE),
    "contamination": (STORY + "短くお願いします。", ANSWER, f"task 7: {STORY[:-1]}"),
}


@pytest.mark.parametrize("rule", SPOILT)
def test_each_rule_applies_only_if_it_is_listed(rule: str) -> None:
    instruction, response, matched = SPOILT[rule]
    pairs = make_pairs((QUESTION, ANSWER), (instruction, response))
    assert judge(pairs) == []
    (found,) = judge(pairs, rule)
    assert found[:3] == (1, rule, "instruction" if response == ANSWER else "response")
    assert found[3] == matched


def test_contamination_is_reported_with_the_task() -> None:
    pairs = make_pairs((QUESTION, ANSWER), (STORY, ANSWER))
    parameters = make_parameters("contamination")
    tasks = Dataset.from_list([TASK])
    found = nodes.judge_pairs(pairs, make_violations(), {}, [], [], None, tasks, parameters)
    report = nodes.report_filtering(pairs, pairs, pairs, found, {}, {}, {}, None, parameters)
    ((matched, counted),) = report["contamination"].items()
    assert matched.startswith("task 7: ")
    assert "海辺でアザラシと友達" in matched
    assert counted == {"pairs": 1, "alone": 1}


def test_a_phrase_of_many_pairs_is_not_contamination() -> None:
    pairs = make_pairs(*[(f"{STORY[:20]}{row}番目の話", ANSWER) for row in range(11)])
    assert judge(pairs, "contamination", contamination_share_min=1) == []
    assert len(judge(pairs.select(range(10)), "contamination", contamination_share_min=1)) == 10


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("token_count", "'token_count' needs 'target_tokenizer'"),
        ("contamination", "has no tasks to compare"),
    ],
)
def test_rules_without_their_input_are_refused(rule: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        judge(make_pairs((QUESTION, ANSWER)), rule, tasks=[])


DUPLICATES = [
    (QUESTION, "日本の首都は東京で、最大の都市でもあります。"),
    (QUESTION, "日本の首都は東京で、最大の都市でもあります。"),
    ("日本の首都はどこですか?", "日本の首都は東京であり、最大の都市でもあります。"),
    (QUESTION, "東京です。明治になってから京都から移されました。"),
    ("フランスの首都は。", "パリです。"),
]


def find(*rules: str, rows: tuple[int, ...] = (0, 1, 2, 3, 4), **changes: Any) -> list[Any]:
    pairs = make_pairs(*DUPLICATES)
    found = find_duplicates(pairs, np.array(rows), make_parameters(*rules, **changes))
    return [tuple(violation) for violation in found]


def test_duplicates_name_the_record_that_they_repeat() -> None:
    assert find() == []
    assert find("exact_duplicate") == [(1, "exact_duplicate", "pair", "record 1")]
    near = find("near_duplicate")
    assert [violation[:3] for violation in near] == [
        (1, "near_duplicate", "pair"),
        (2, "near_duplicate", "pair"),
    ]
    assert near[0][3] == "record 1, similarity 1.00"
    assert near[1][3].startswith("record 1, similarity 0.")


def test_near_duplicates_are_searched_without_exact_duplicates() -> None:
    found = find("exact_duplicate", "near_duplicate")
    assert [violation[:2] for violation in found] == [(1, "exact_duplicate"), (2, "near_duplicate")]


def test_rejected_pairs_are_not_compared() -> None:
    assert find("exact_duplicate", rows=(1, 2, 4)) == []
    pairs = make_pairs((QUESTION, ANSWER), (QUESTION, ANSWER), (ANSWER, ANSWER))
    parameters = make_parameters("exact_duplicate")
    first = nodes.judge_pairs(
        pairs, make_violations(), {}, [QUESTION], [], None, Dataset.from_list([]), parameters
    )
    found, _ = nodes.judge_survivors(pairs, first, parameters)
    assert {violation.rule for violation in found} == {"banned_substring"}


def test_every_extra_rule_has_an_id_in_the_list() -> None:
    ids = get_args(ExtraRule)
    assert set(ids) < set(RULES)
    recipe = {"banned_substring", "banned_instruction_substring", "rare_character"}
    recipe |= {"language", "language_undetectable", "rare_survivor_character"}
    turns = {"assistant_first", "unexpected_turn"}
    assert set(RULES) - set(ids) == recipe | turns


def make_tokenizer() -> Tokenizer:
    """One token for each run of kana and each other character, and a BOS before them."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<bos>": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[ぁ-ゖ]+|[^ぁ-ゖ]"), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    return tokenizer


@given(st.lists(st.text("東京はです。\n𠮷", max_size=12), max_size=8))
def test_token_counts_match_those_of_single_texts(texts: list[str]) -> None:
    tokenizer = make_tokenizer()
    expected = [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
    assert measure_token_counts(texts, tokenizer).tolist() == expected


def test_token_counts_of_several_batches_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extra_rules, "BATCH_TEXTS", 3)
    texts = ["東" * count for count in range(11)]
    assert measure_token_counts(texts, make_tokenizer()).tolist() == list(range(11))


def test_truncation_and_padding_are_ignored_and_kept() -> None:
    tokenizer = make_tokenizer()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    assert measure_token_counts(["東京都心", "東"], tokenizer).tolist() == [4, 1]
    assert len(tokenizer.encode("東京都心").ids) == 8
    assert tokenizer.truncation["max_length"] == 2


@pytest.mark.parametrize(
    ("instruction_tokens", "response_tokens", "expected"),
    [
        (10, 3, []),
        (10, 2, [("response", "2 < 3")]),
        (17, 3, []),
        (10, 10, []),
        (18, 3, [("instruction", "18 + 3 > 20")]),
        (10, 11, [("response", "10 + 11 > 20")]),
        (30, 0, [("response", "0 < 3")]),
    ],
)
def test_token_limits_are_inclusive(
    instruction_tokens: int, response_tokens: int, expected: list[tuple[str, str]]
) -> None:
    pairs = make_pairs(("東", "京" * 3), ("東" * instruction_tokens, "京" * response_tokens))
    limits = {"response_tokens_min": 3, "pair_tokens_max": 20}
    found = judge(pairs, "token_count", tokenizer=make_tokenizer(), **limits)
    assert found == [(1, "token_count", *one) for one in expected]
