"""The rules beyond the recipe, wired: each with a pair that it rejects and one that it leaves."""

from typing import Any, get_args

import numpy as np
import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers

from ja_instruct.errors import InputError
from ja_instruct.pipelines.data_filtering import nodes
from ja_instruct.pipelines.data_filtering.extra_rules import find_duplicates
from ja_instruct.pipelines.data_filtering.parameters import (
    DataFilteringParameters,
    FurtherRule,
)
from ja_instruct.pipelines.data_filtering.violations import RULES

QUESTION = "日本の首都はどこですか。"
ANSWER = "日本の首都は東京です。"
CHINESE = "我们今天在这里学习如何使用计算机编写程序并且分析数据结果"
STORY = "クマが海辺でアザラシと友達になる短編小説を書いてください。"
TASK = {"task_id": 7, "input": STORY}


def make_parameters(*rules: str, **changes: Any) -> DataFilteringParameters:
    figures = {
        "rare_char_count_max": 0,
        "survivor_char_count_min": 0,
        "language": "ja",
        "language_percent_min": 0,
        "bad_records_max": 0,
        "extra_rules": rules,
        "response_tokens_min": 2,
        "pair_tokens_max": 60,
        "repeated_sentence_percent_max": 30,
        "repeated_ngram_percent_max": 60,
        "repeated_ngram_letters_min": 300,
        "han_chars_without_kana_max": 20,
        "foreign_han_chars_without_kana_max": 12,
        "contamination_ngram_chars": 18,
        "contamination_share_min": 0.5,
        "contamination_stock_texts_max": 10,
        "near_duplicate_jaccard_min": 0.6,
        "quality_scores": False,
    }
    return DataFilteringParameters.model_validate(figures | changes)


def make_pairs(*pairs: tuple[str, str]) -> Dataset:
    instructions, responses = zip(*pairs, strict=True)
    return Dataset.from_dict({"instruction": list(instructions), "response": list(responses)})


def make_character_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return tokenizer


def judge(
    pairs: Dataset, *rules: str, tokenizer: Tokenizer | None = None, **changes: Any
) -> list[tuple[int, str, str, str]]:
    found = nodes.judge_pairs(
        pairs, {}, [], [], tokenizer, Dataset.from_list([TASK]), make_parameters(*rules, **changes)
    )
    return [tuple(violation) for violation in found if not violation.rule.startswith("language")]


SPOILT = {
    "citation_mark": (QUESTION, ANSWER + "人口は約1400万人です[3]。", "response", "[3]"),
    "cut_off": (
        QUESTION,
        "日本の首都は、明治になってから京都から移された東京で、",
        "response",
        None,
    ),
    "repetition": (QUESTION, "首都は東京という都市になります。" * 20, "response", None),
    "kana_share": (QUESTION, ANSWER + CHINESE, "response", None),
    "contamination": (STORY + "短くお願いします。", ANSWER, "instruction", None),
}


@pytest.mark.parametrize("rule", SPOILT)
def test_each_rule_is_asked_where_it_is_wanted(rule: str) -> None:
    instruction, response, field, matched = SPOILT[rule]
    pairs = make_pairs((QUESTION, ANSWER), (str(instruction), str(response)))
    assert judge(pairs) == []
    (found,) = judge(pairs, rule)
    assert found[:3] == (1, rule, field)
    assert found[3]
    assert matched is None or found[3] == matched


def test_a_contaminated_pair_names_the_task() -> None:
    pairs = make_pairs((STORY, ANSWER))
    (found,) = judge(pairs, "contamination")
    assert found[3].startswith("task 7: ")
    assert "海辺でアザラシと友達" in found[3]


def test_what_was_caught_is_in_the_report() -> None:
    pairs = make_pairs((QUESTION, ANSWER), (STORY, ANSWER))
    parameters = make_parameters("contamination")
    tasks = Dataset.from_list([TASK])
    found = nodes.judge_pairs(pairs, {}, [], [], None, tasks, parameters)
    report = nodes.report_filtering(pairs, pairs, pairs, found, {}, {}, {}, None, parameters)
    ((told, counted),) = report["contamination"].items()
    assert told.startswith("task 7: ")
    assert counted == {"pairs": 1, "alone": 1}


def test_a_phrase_of_many_pairs_is_no_contamination() -> None:
    pairs = make_pairs(*[(f"{STORY[:20]}{row}番目の話", ANSWER) for row in range(11)])
    assert judge(pairs, "contamination", contamination_share_min=1) == []
    assert len(judge(pairs.select(range(10)), "contamination", contamination_share_min=1)) == 10


def test_token_counts_are_bounded() -> None:
    pairs = make_pairs((QUESTION, "京"), (QUESTION, ANSWER), ("問" * 40, "答" * 30))
    found = judge(pairs, "token_count", tokenizer=make_character_tokenizer())
    assert found == [
        (0, "token_count", "response", "1 < 2"),
        (2, "token_count", "instruction", "40 + 30 > 60"),
    ]


def test_token_counts_need_a_tokenizer() -> None:
    with pytest.raises(InputError, match=r"'token_count' needs 'target_tokenizer'"):
        judge(make_pairs((QUESTION, ANSWER)), "token_count")


def test_contamination_needs_tasks() -> None:
    parameters = make_parameters("contamination")
    pairs = make_pairs((QUESTION, ANSWER))
    with pytest.raises(InputError, match="no task to compare"):
        nodes.judge_pairs(pairs, {}, [], [], None, Dataset.from_list([]), parameters)


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


def test_duplicates_are_told_with_the_record_that_they_repeat() -> None:
    assert find() == []
    assert find("exact_duplicate") == [(1, "exact_duplicate", "pair", "record 1")]
    near = find("near_duplicate")
    assert [violation[:3] for violation in near] == [
        (1, "near_duplicate", "pair"),
        (2, "near_duplicate", "pair"),
    ]
    assert near[0][3] == "record 1, similarity 1.00"
    assert near[1][3].startswith("record 1, similarity 0.")


def test_what_one_rule_drops_speaks_against_no_other_pair() -> None:
    found = find("exact_duplicate", "near_duplicate")
    assert [violation[:2] for violation in found] == [(1, "exact_duplicate"), (2, "near_duplicate")]


def test_rejected_pairs_have_no_duplicates() -> None:
    assert find("exact_duplicate", rows=(1, 2, 4)) == []
    pairs = make_pairs((QUESTION, ANSWER), (QUESTION, ANSWER), (ANSWER, ANSWER))
    parameters = make_parameters("exact_duplicate")
    first = nodes.judge_pairs(pairs, {}, [QUESTION], [], None, Dataset.from_list([]), parameters)
    found, _ = nodes.judge_survivors(pairs, first, parameters)
    assert {violation.rule for violation in found} == {"banned_substring"}


def test_scores_are_columns_of_what_is_kept() -> None:
    pairs = make_pairs((QUESTION, ANSWER), (QUESTION, "昔は京都でした。"), (QUESTION, ANSWER * 3))
    parameters = make_parameters("exact_duplicate", quality_scores=True)
    first = nodes.judge_pairs(pairs, {}, ["東京です"], [], None, Dataset.from_list([]), parameters)
    kept, dropped = nodes.split_pairs(pairs, first, parameters)
    assert kept["response"][:] == ["昔は京都でした。"]
    assert kept["score_response_chars"][:] == [8]
    assert kept["score_kana_share"][:] == [4 / 7]
    assert not [name for name in dropped.column_names if name.startswith("score_")]
    nothing, _ = nodes.split_pairs(pairs.select([0]), first.at_rows(np.arange(3)), parameters)
    assert nothing.column_names == kept.column_names


def test_every_further_rule_has_an_id_of_the_list() -> None:
    ids = get_args(FurtherRule)
    assert set(ids) < set(RULES)
    recipe = {"banned_substring", "banned_instruction_substring", "rare_character"}
    recipe |= {"language", "language_undetectable", "rare_survivor_character"}
    assert set(RULES) - set(ids) == recipe
