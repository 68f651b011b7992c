"""The report of the filter, on pairs few enough to count by hand."""

import json
from typing import Any

import numpy as np
import pytest
from filter_pairs import ANSWER, QUESTION, make_character_tokenizer, make_pairs, make_violations

from ja_instruct.pipelines.data_filtering import report
from ja_instruct.pipelines.data_filtering.violations import RULES

FOUND = make_violations(
    (0, "banned_substring", "instruction", "翻訳"),
    (0, "banned_substring", "response", "翻訳"),
    (1, "banned_substring", "instruction", "翻訳"),
    (1, "banned_substring", "instruction", "英訳"),
    (2, "banned_substring", "response", "翻訳"),
    (2, "rare_character", "response", "岚"),
    (3, "rare_character", "instruction", "岚"),
    (3, "rare_character", "instruction", "㌍"),
    # the same text may violate two rules
    (5, "rare_character", "response", "翻訳"),
)


def test_rules_are_counted_in_three_ways() -> None:
    counts = report.count_rules(FOUND)
    zero = dict.fromkeys(RULES, 0)
    assert counts["rejected_by_rule"] == zero | {"banned_substring": 3, "rare_character": 3}
    assert counts["rejected_by_first_rule"] == zero | {"banned_substring": 3, "rare_character": 2}
    assert counts["rejected_by_rule_alone"] == zero | {"banned_substring": 2, "rare_character": 2}


def test_matches_are_counted_by_pair_and_rule() -> None:
    assert report.count_matches(FOUND, "banned_substring") == {
        "翻訳": {"pairs": 3, "alone": 1},
        "英訳": {"pairs": 1, "alone": 0},
    }
    assert list(report.count_matches(FOUND, "banned_substring")) == ["翻訳", "英訳"]
    assert report.count_matches(FOUND, "rare_character")["翻訳"] == {"pairs": 1, "alone": 1}
    assert report.count_matches(FOUND, "language") == {}


def test_banned_characters_are_described_with_their_pairs() -> None:
    found = make_violations(*(one for one in FOUND if one.row in (2, 3)))
    characters = {"㌍": 1, "岚": 2, "甲": 3}
    described = report.describe_characters(characters, found, "rare_character")
    assert described["count"] == 3
    assert described["characters"] == "㌍岚甲"
    assert described["found"]["岚"] == {"code_point": "U+5C9A", "times": 2, "pairs": 2, "alone": 0}
    assert "甲" not in described["found"]


def test_good_data_is_what_one_rule_alone_drops_and_cld2_accepts() -> None:
    pairs = make_pairs(
        (QUESTION, ANSWER),
        (QUESTION, "It is Tokyo, the largest city there."),
        (QUESTION, ANSWER),
        (QUESTION, ""),
    )
    found = make_violations(
        (0, "rare_character", "response", "京"),
        (1, "rare_character", "response", "T"),
        (2, "rare_character", "response", "京"),
        (2, "banned_substring", "response", "京"),
        (3, "language", "response", "none"),
    )
    costs = report.estimate_good_data(pairs, found, "ja", 60)
    expected = {"alone": 2, "sampled": 2, "in_language": 1, "estimate": 1}
    assert costs["rare_character"] == expected
    assert costs["language"] == {"alone": 1, "sampled": 1, "in_language": 0, "estimate": 0}
    assert costs["banned_substring"]["alone"] == 0
    assert set(costs) == set(RULES)


def test_good_data_is_estimated_from_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "LANGUAGE_SAMPLE", 4)
    pairs = make_pairs(*[(QUESTION, ANSWER if row % 3 else "") for row in range(10)])
    found = make_violations(*[(row, "rare_character", "response", "京") for row in range(10)])
    # the sample is rows 0, 3, 6 and 9, which are empty
    expected = {"alone": 10, "sampled": 4, "in_language": 0, "estimate": 0}
    assert report.estimate_good_data(pairs, found, "ja", 60)["rare_character"] == expected


def test_examples_are_spread_and_cut_around_the_match() -> None:
    long = "甲" * 500 + "岚" + "乙" * 500
    pairs = make_pairs(*[(f"問{row}", long if row == 19 else "答") for row in range(20)])
    found = make_violations(*[(row, "rare_character", "response", "岚") for row in range(20)])
    examples = report.pick_examples(pairs, found)
    assert len(examples["rare_character"]) == report.EXAMPLES_PER_RULE
    first, *_, last = examples["rare_character"]
    match = {"record": 1, "side": "response", "matched": "岚"}
    assert first == match | {"instruction": "問0", "response": "答"}
    assert last["record"] == 20
    assert last["response"] == "…" + "甲" * 100 + "岚" + "乙" * 99 + "…"
    assert examples["language"] == []
    assert json.loads(json.dumps(examples)) == examples


def test_lengths_are_described() -> None:
    described = report.describe_lengths(np.array([1, 2, 3, 300]), [0, 1, 2, 4, 300])
    quantiles = {"mean": 76.5, "p5": 1.1, "median": 2.5, "p95": 255.4, "max": 300}
    assert described == quantiles | {"texts": 4, "histogram": [0, 1, 2, 1]}


def test_bins_cover_every_length() -> None:
    before = make_pairs(*[("問" * n, "答") for n in (0, 1, 7, 1000)])
    nothing = report.compare_characters(before, before.select([]))["after"]["response"]
    assert (nothing["mean"], sum(nothing["histogram"])) == (0, 0)
    described = report.compare_characters(before, before.select([2]))
    edges = described["edges"]
    assert edges == sorted(set(edges))
    assert edges[-1] >= 1000
    assert sum(described["before"]["instruction"]["histogram"]) == 4
    assert described["after"]["instruction"]["median"] == 7


def test_tokens_are_counted_on_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_character_tokenizer()
    pairs = make_pairs(*[("問" * (row + 1), "答") for row in range(5)])
    described: Any = report.compare_tokens(pairs, pairs.select([0]), tokenizer)
    assert described["before"]["instruction"]["texts"] == 5
    assert described["before"]["instruction"]["mean"] == 3
    assert described["after"]["instruction"]["max"] == 1
    monkeypatch.setattr(report, "TOKEN_SAMPLE", 3)
    described = report.compare_tokens(pairs, pairs.select([]), tokenizer)
    assert described["before"]["instruction"]["texts"] == 3
    assert described["before"]["instruction"]["max"] == 5
    assert described["after"]["instruction"]["texts"] == 0
    assert report.compare_tokens(pairs, pairs, None) is None
