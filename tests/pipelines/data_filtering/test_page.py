"""What a reader sees of the filter page, and that the texts in it are not executed."""

import copy
import json
import re
from collections import Counter

import pytest
from filter_pairs import make_rule_counts
from html_page import HOSTILE, Page
from hypothesis import given
from hypothesis import strategies as st

from ja_instruct.pipelines.data_filtering.page import (
    LISTED_MAX,
    TOP,
    build_filter_page,
    list_rule_costs,
    list_steps,
)
from ja_instruct.pipelines.data_filtering.plots import plot_lengths, plot_rejections
from ja_instruct.pipelines.data_filtering.violations import RULES

BYTES_MAX = 8_000_000


DESCRIBED = {"texts": 4, "mean": 1.0, "p5": 1, "median": 1, "p95": 1, "max": 1, "histogram": [0, 4]}
FIELDS = {"instruction": DESCRIBED, "response": DESCRIBED}
NO_CHARACTERS = {"count": 0, "characters": "", "found": {}}


def make_example(instruction, response, matched, record=1):
    texts = {"instruction": instruction, "response": response}
    return {"record": record, "side": "response", "matched": matched} | texts


REPORT = {
    "summary": {"read": 1000, "kept": 700, "rejected": 300, "kept_percent": 70.0}
    | {"quarantined": 1234},
    **make_rule_counts(
        banned_substring=(150, 150, 130, 65),
        rare_character=(120, 100, 100, 90),
        token_count=(0, 0, 0, 0),
        language=(50, 50, 50, 0),
    ),
    "replacements": {"よしmitsu": 17, "松下": 0},
    "banned_substrings": {
        "翻訳": {"pairs": 120, "alone": 98},
        " Weekly ": {"pairs": 30, "alone": 2},
    },
    "banned_instruction_substrings": {},
    "rare_characters": {
        "count": 9,
        "characters": "弊智\u0301",
        "found": {
            "弊": {"code_point": "U+5F0A", "times": 18, "pairs": 16, "alone": 13},
            "智": {"code_point": "U+667A", "times": 2, "pairs": 9, "alone": 7},
            "\u0301": {"code_point": "U+0301", "times": 9, "pairs": 4, "alone": 0},
        },
    },
    "rare_survivor_characters": NO_CHARACTERS,
    "examples": {
        "banned_substring": [
            make_example(
                "翻訳とは何ですか。",
                "翻訳とは、別の言語にすることです。翻訳者が行います。",
                "翻訳",
                7,
            )
        ],
        "rare_character": [],
        "token_count": [],
        "language": [make_example("トープとは。", "none\x0c", "none", 2345)],
    },
    "lengths": {
        "characters": {"edges": [0, 1, 2], "before": FIELDS, "after": FIELDS},
        "tokens": None,
    },
}


def build(**changes):
    report = copy.deepcopy(REPORT) | changes
    return build_filter_page(report, plot_rejections(report), plot_lengths(report))


@pytest.fixture(scope="module")
def page():
    return Page(build())


def test_what_to_change_comes_first(page):
    start = page.text.index("What to change")
    assert start < page.text.index("Input and output")
    advice = page.text[start : page.text.index("Input and output")]
    assert "rare_character alone drops about 90 Japanese pairs (9.0 % of all read)" in advice
    assert "loosen data_filtering.rare_char_count_max" in advice
    # 90 % of the 13 pairs with 弊 alone are Japanese; 智 would stay banned
    assert "data_filtering.rare_char_count_max: 9 → 約 12 件以上が戻ります" in advice
    assert "弊 (U+5F0A) → これだけが理由のペア 13 件" in advice
    assert "pairs dropped for this alone: 13 · data_filtering.rare_char_count_max: 17" in advice
    # half of 98 is more than 13
    assert advice.index("翻訳") < advice.index("弊")
    assert "pairs dropped for this alone: 98 · word_lists/banned_substrings.yml" in advice


def test_changes_are_sorted_by_the_japanese_pairs_that_they_return():
    advice = Page(build(banned_substrings={"翻訳": {"pairs": 25, "alone": 20}})).text
    # half of 20 is fewer than 90 % of 13
    assert 0 < advice.index("弊 (U+5F0A)") < advice.index("翻訳 →")


def test_nothing_to_change():
    good = {rule: figures | {"estimate": 0} for rule, figures in REPORT["good_data"].items()}
    advice = Page(build(good_data=good)).text
    assert "No rule alone drops pairs that CLD2 detects as Japanese: nothing to loosen" in advice
    assert "dropped for this alone" not in advice


def test_conversations_with_history_and_columns_of_several_types(page):
    example = make_example("ありがとう。", "どういたしまして。", "翻訳") | {"side": "history"}
    text = Page(
        build(
            summary={"conversations": 321, "history_turns": 654, **REPORT["summary"]},
            json_text_columns=["meta", "conversations[].tool_calls"],
            examples=REPORT["examples"]
            | {"banned_substring": [{"history": "翻訳して。\n訳しました。", **example}]},
        )
    ).text
    assert "conversations 321" in text
    assert "turns before 654" in text
    assert "kept as JSON text: meta conversations[].tool_calls" in text
    assert re.search(r"history: 翻訳 history 翻訳 ?して。", text)
    for heading in ("turns before", "JSON text", "history"):
        assert heading not in page.text


def test_rules_that_drop_japanese_on_purpose_are_not_to_be_loosened():
    text = Page(
        build(
            **make_rule_counts(exact_duplicate=(99, 99, 99, 99), rare_character=(9, 9, 9, 9)),
            examples={"exact_duplicate": [], "rare_character": []},
        )
    ).text
    assert "rare_character alone drops about 9 Japanese pairs" in text
    assert re.search(r"exact_duplicate 99\* 99 99 99 ", text)


def test_shows_input_and_output(page):
    for card in (
        "読み込んだペア · read 1,000",
        "残したペア · kept 700",
        "除外したペア · rejected 300",
        "残した割合 · kept 70.0 %",
        "読めなかったレコード · quarantined 1,234",
    ):
        assert card in page.text


def test_describes_each_rule_and_its_pairs(page):
    assert "rare_character 90 100 100 120 コーパス全体で" in page.text
    assert "banned_substring 65 130 150 150 指示または回答に" in page.text
    assert "the instruction or the response contains a banned substring" in page.text
    assert "rules without violations: token_count" in page.text


def test_every_rule_is_described():
    report = make_rule_counts(**dict.fromkeys(RULES, (3, 3, 3, 3)))
    text = Page(build(**report, examples={rule: [] for rule in RULES})).text
    for rule in RULES:
        assert re.search(rf"{rule} 3\*? 3 3 3 [^·]*[ぁ-ん][^·]* · [a-zA-Z]", text), rule


def test_lists_are_sorted_by_the_pairs_that_each_text_alone_drops(page):
    assert "弊 U+5F0A 18 13 16 智 U+667A 2 7 9 ◌\u0301 U+0301 9 0 4" in page.text
    assert "翻訳 98 120 ␣Weekly␣ 2 30" in page.text
    steps = "rare_char_count_max 値 · value 戻るペア · pairs, at least 9 13 4 13 2 13 1 20 0 100"
    assert steps in page.text
    assert "Substrings banned in instructions" not in page.text
    assert ("type", "search") not in page.attributes


def test_matches_are_marked_in_their_field_and_control_characters_visible(page):
    assert "response none␌" in page.text
    assert page.marked == ["翻訳", "翻訳", "翻訳", "none"]
    assert "record 7 · response: 翻訳" in page.text
    assert "instruction 翻訳とは何ですか。" in page.text


def test_shows_replacements(page):
    assert "よしmitsu 17" in page.text
    assert "置換 2 件のうち 1 件" in page.text
    assert "松下" not in page.text


def test_links_have_targets(page):
    places = {value for name, value in page.attributes if name == "id"}
    links = {value for name, value in page.attributes if name == "href"}
    assert links == {"#examples", "#banned_substring", "#language"}
    assert links <= {f"#{place}" for place in places}


def test_is_self_contained_and_small(page):
    page.assert_self_contained()
    html = build()
    assert html.count("plotly.js v") == 1
    assert len(html.encode()) < BYTES_MAX


def test_hostile_text_is_shown_not_executed(page):
    counts = {HOSTILE: {"pairs": 3, "alone": 3}}
    example = make_example(HOSTILE, f"前{HOSTILE}後", HOSTILE)
    hostile = Page(
        build(
            replacements={HOSTILE: 3},
            banned_substrings=counts,
            banned_instruction_substrings=counts,
            examples=REPORT["examples"] | {"banned_substring": [example]},
        )
    )
    hostile.assert_as_safe_as(page)
    assert HOSTILE in hostile.marked
    assert f"instruction {HOSTILE}" in hostile.text
    assert f"response 前{HOSTILE}後" in hostile.text


def test_a_page_of_20_000_characters_stays_small():
    characters = [chr(0x4E00 + number) for number in range(20_000)]
    found = {
        character: {"code_point": f"U+{ord(character):04X}", "times": 9, "pairs": 9, "alone": 9}
        for character in characters
    }
    long = {f"{number}{HOSTILE * 9}": {"pairs": 9, "alone": 9} for number in range(20_000)}
    example = make_example("<" * 202, "<" * 202, "<")
    html = build(
        rare_characters={"count": 20_000, "characters": "".join(characters), "found": found},
        rare_survivor_characters={"count": 20_000, "characters": "", "found": found},
        banned_substrings=long,
        banned_instruction_substrings=long,
        replacements=dict.fromkeys(long, 3),
        examples=dict.fromkeys(REPORT["examples"], [example] * 10),
    )
    assert len(html.encode()) < BYTES_MAX
    large = Page(html)
    assert f"残り · the other {LISTED_MAX - TOP:,}" in large.text
    assert "18,000 more are in filter_report.json" in large.text
    assert ("type", "search") in large.attributes


def test_an_empty_corpus():
    described = {"texts": 0, "median": 0.0, "histogram": [0]}
    fields = dict.fromkeys(("instruction", "response"), described)
    page = Page(
        build(
            summary=dict.fromkeys(REPORT["summary"], 0) | {"kept_percent": 0.0},
            **make_rule_counts(language=(0, 0, 0, 0)),
            replacements={},
            banned_substrings={},
            rare_characters=NO_CHARACTERS,
            lengths={"characters": {"edges": [0, 1], "before": fields, "after": fields}},
        )
    )
    assert "nothing to loosen" in page.text
    assert "Which texts and characters drop most pairs" not in page.text


def test_a_report_loaded_from_json_makes_the_same_page():
    assert build(**json.loads(json.dumps(REPORT))) == build()


corpora = st.lists(st.text("弊僚智腰ぺə", min_size=1, max_size=6), min_size=1, max_size=30)


def test_the_rule_that_loses_most_comes_first():
    rules = {"banned_substring": (50, 50, 20, 5), "rare_character": (30, 20, 10, 9)}
    rules |= {"language": (40, 40, 40, 0), "token_count": (0, 0, 0, 0)}
    costs = list_rule_costs(make_rule_counts(**rules))
    assert [cost.rule for cost in costs] == ["rare_character", "banned_substring", "language"]
    assert [cost.lost for cost in costs] == [9, 5, 0]
    assert costs[0][1:6] == (30, 20, 10, 9, 0.9)


@given(corpora, st.integers(0, 12), st.sampled_from([0, 1]))
def test_steps_match_judging_each_pair_again(texts, limit, banned_from):
    times = Counter("".join(texts))

    def find_banned(text, value):
        return {character for character in text if times[character] < value + banned_from}

    found = {
        character: {
            "times": times[character],
            "alone": sum(find_banned(text, limit) == {character} for text in texts),
        }
        for character in times
        if times[character] < limit + banned_from
    }
    rejected = [text for text in texts if find_banned(text, limit)]
    steps = list_steps(found, len(rejected), banned_from=banned_from)
    assert bool(steps) == bool(rejected)
    # the last step bans nothing
    assert not steps or steps[-1] == (1 - banned_from, len(rejected))
    for step in steps:
        freed = [text for text in rejected if not find_banned(text, step.value)]
        single = [text for text in freed if len(find_banned(text, limit)) == 1]
        assert step.value < limit
        assert step.pairs == len(freed) if step is steps[-1] else step.pairs == len(single)
        assert step.pairs <= len(freed)


def test_steps_halve_the_limit_until_nothing_is_banned():
    found = {"弊": {"times": 3, "alone": 2}}
    assert list_steps(found, 5, banned_from=1) == [(1, 2), (0, 5)]
    assert list_steps(found, 5, banned_from=0) == [(2, 2), (1, 5)]
    assert list_steps({}, 0, banned_from=1) == []
