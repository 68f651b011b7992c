"""What a person sees of a filter's report, and that the texts in it stay texts."""

import copy
import json
import re
from html.parser import HTMLParser

import pytest

from ja_instruct.pipelines.data_filtering.page import LISTED_MAX, TOP, build_filter_page
from ja_instruct.pipelines.data_filtering.plots import plot_lengths, plot_rejections

HOSTILE = "<script>alert(1)</script>{{ 7 * 7 }}<img src=x onerror=alert(2)>&amp;\"'</details>"
BYTES_MAX = 8_000_000
BLOCKS = {"td", "th", "h3", "h4", "p", "header"}
VOID = {"meta", "br", "wbr", "input", "link", "img"}

DESCRIBED = {"texts": 4, "mean": 1.0, "p5": 1, "median": 1, "p95": 1, "max": 1, "histogram": [0, 4]}
FIELDS = {"instruction": DESCRIBED, "response": DESCRIBED}
REPORT = {
    "summary": {
        "read": 1000,
        "kept": 700,
        "rejected": 300,
        "kept_percent": 70.0,
        "quarantined": 1234,
    },
    "rejected_by_rule": {
        "banned_substring": 150,
        "rare_character": 120,
        "token_count": 0,
        "language": 50,
    },
    "rejected_by_first_rule": {
        "banned_substring": 150,
        "rare_character": 100,
        "token_count": 0,
        "language": 50,
    },
    "rejected_by_rule_alone": {
        "banned_substring": 130,
        "rare_character": 100,
        "token_count": 0,
        "language": 50,
    },
    "good_data": {
        "banned_substring": {"alone": 130, "sampled": 100, "in_language": 50, "estimate": 65},
        "rare_character": {"alone": 100, "sampled": 100, "in_language": 90, "estimate": 90},
        "token_count": {"alone": 0, "sampled": 0, "in_language": 0, "estimate": 0},
        "language": {"alone": 50, "sampled": 50, "in_language": 0, "estimate": 0},
    },
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
    "rare_survivor_characters": {"count": 0, "characters": "", "found": {}},
    "examples": {
        "banned_substring": [
            {
                "record": 7,
                "side": "response",
                "matched": "翻訳",
                "instruction": "翻訳とは何ですか。",
                "response": "翻訳とは、別の言語にすることです。翻訳者が行います。",
            }
        ],
        "rare_character": [],
        "token_count": [],
        "language": [
            {
                "record": 2345,
                "side": "response",
                "matched": "none",
                "instruction": "トープとは。",
                "response": "none\x0c",
            }
        ],
    },
    "lengths": {
        "characters": {"edges": [0, 1, 2], "before": FIELDS, "after": FIELDS},
        "tokens": None,
    },
    "seconds": {"steps": {"judge_pairs": 0.3134}, "rules": {"language": 1.3653}},
}


class Page(HTMLParser):
    """The elements of a page, the text that a reader sees, and what is marked in it."""

    def __init__(self, html):
        super().__init__()
        self.elements = []
        self.attributes = []
        self.text = ""
        self.marked = []
        self._open = []
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        self.text += " " if tag in BLOCKS else ""

    def handle_data(self, data):
        if not {"script", "style"} & set(self._open):
            self.text += data
            if "mark" in self._open:
                self.marked.append(data)


def build(**changes):
    report = copy.deepcopy(REPORT) | changes
    return build_filter_page(report, plot_rejections(report), plot_lengths(report))


@pytest.fixture(scope="module")
def page():
    return Page(build())


def test_says_first_what_to_change(page):
    start = page.text.index("What to change")
    assert start < page.text.index("What came in, what is left")
    told = page.text[start : page.text.index("What came in, what is left")]
    assert "rare_character alone costs about 90 Japanese pairs (9.0 % of all read)" in told
    assert "loosen data_filtering.rare_char_count_max" in told
    # of the 13 pairs that 弊 alone is against, 90 % are Japanese; 智 would stay banned
    assert "data_filtering.rare_char_count_max: 9 → 約 12 組以上が戻る" in told
    assert "弊 (U+5F0A) → これだけを理由に 13 組" in told
    assert "13 pairs for this alone · data_filtering.rare_char_count_max: 17" in told
    # half of 98 is more than 13
    assert told.index("翻訳") < told.index("弊")
    assert "98 pairs for this alone · word_lists/banned_substrings.yml" in told


def test_changes_are_ordered_by_the_japanese_pairs_that_they_return():
    told = Page(build(banned_substrings={"翻訳": {"pairs": 25, "alone": 20}})).text
    # half of 20 is fewer than 90 % of 13
    assert 0 < told.index("弊 (U+5F0A)") < told.index("翻訳 →")


def test_nothing_to_change():
    good = {rule: figures | {"estimate": 0} for rule, figures in REPORT["good_data"].items()}
    told = Page(build(good_data=good)).text
    assert "No rule alone costs pairs that CLD2 finds Japanese: nothing to loosen" in told
    assert "for this alone" not in told


def test_rules_that_drop_japanese_on_purpose_are_not_to_be_loosened():
    text = Page(
        build(
            rejected_by_rule={"exact_duplicate": 99, "rare_character": 9},
            rejected_by_first_rule={"exact_duplicate": 99, "rare_character": 9},
            rejected_by_rule_alone={"exact_duplicate": 99, "rare_character": 9},
            good_data={
                "exact_duplicate": {"sampled": 99, "in_language": 99, "estimate": 99},
                "rare_character": {"sampled": 9, "in_language": 9, "estimate": 9},
            },
        )
    ).text
    assert "rare_character alone costs about 9 Japanese pairs" in text
    assert re.search(r"exact_duplicate 99\* 99 99 99 ", text)


def test_shows_what_came_in_and_what_is_left(page):
    for card in (
        "読んだ組 · read 1,000",
        "残した組 · kept 700",
        "落とした組 · rejected 300",
        "残した割合 · kept 70.0 %",
        "読めなかった記録 · quarantined 1,234",
    ):
        assert card in page.text


def test_shows_what_each_rule_costs_in_words_and_figures(page):
    assert "rare_character 90 100 100 120 コーパス全体で" in page.text
    assert "banned_substring 65 130 150 150 どちらかの側に" in page.text
    assert "either field holds a text of the banned list" in page.text
    assert "against no pair: token_count" in page.text


def test_lists_texts_and_characters_by_what_they_alone_cost(page):
    assert "弊 U+5F0A 18 13 16 智 U+667A 2 7 9 ◌\u0301 U+0301 9 0 4" in page.text
    assert "翻訳 98 120 ␣Weekly␣ 2 30" in page.text
    assert "rare_char_count_max 値 · value 戻る組 · pairs, at least 9 13 4 13 2 13 1 20 0 100" in (
        page.text
    )
    assert "Texts banned in instructions" not in page.text
    assert ("type", "search") not in page.attributes


def test_marks_what_was_found_where_it_was_found(page):
    assert page.marked == ["翻訳", "翻訳", "翻訳", "none"]
    assert "record 7 · response: 翻訳" in page.text
    assert "instruction 翻訳とは何ですか。" in page.text


def test_control_characters_are_seen(page):
    assert "response none␌" in page.text


def test_shows_replacements_and_times(page):
    assert "よしmitsu 17" in page.text
    assert "1 / 2 件の置換" in page.text
    assert "松下" not in page.text
    assert "judge_pairs 0.31 s" in page.text
    assert "language 1.37 s" in page.text


def test_links_lead_to_what_is_on_the_page(page):
    places = {value for name, value in page.attributes if name == "id"}
    links = {value for name, value in page.attributes if name == "href"}
    assert links == {"#examples", "#rule-2", "#rule-3"}
    assert links <= {f"#{place}" for place in places}


def test_needs_nothing_from_elsewhere(page):
    loaded = [value for name, value in page.attributes if name in ("src", "href")]
    assert not [value for value in loaded if value is None or "//" in value]
    assert "link" not in page.elements
    html = build()
    assert html.count("plotly.js v") == 1
    assert len(html.encode()) < BYTES_MAX


def test_the_same_report_makes_the_same_page():
    assert build() == build()


def test_hostile_text_is_shown_not_run(page):
    example = {"record": 1, "side": "response", "matched": HOSTILE, "instruction": HOSTILE}
    hostile = Page(
        build(
            summary=REPORT["summary"] | {HOSTILE: HOSTILE},
            rejected_by_rule=REPORT["rejected_by_rule"] | {HOSTILE: 3, f"{HOSTILE}_": 0},
            replacements={HOSTILE: 3},
            banned_substrings={HOSTILE: {"pairs": 3, "alone": 3}},
            banned_instruction_substrings={HOSTILE: {"pairs": 3, "alone": 3}},
            examples={"banned_substring": [example | {"response": f"前{HOSTILE}後"}]},
            seconds={"steps": {HOSTILE: 1.0}, "rules": {HOSTILE: 1.0}},
        )
    )
    assert set(hostile.elements) <= set(page.elements)
    assert hostile.elements.count("script") == page.elements.count("script")
    assert not [name for name, _ in hostile.attributes if name.startswith("on")]
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
    text = "<" * 202
    example = {"record": 1, "side": "response", "matched": "<", "instruction": text}
    html = build(
        rare_characters={"count": 20_000, "characters": "".join(characters), "found": found},
        rare_survivor_characters={"count": 20_000, "characters": "", "found": found},
        banned_substrings=long,
        banned_instruction_substrings=long,
        replacements=dict.fromkeys(long, 3),
        examples=dict.fromkeys(REPORT["examples"], [example | {"response": text}] * 10),
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
            summary={"read": 0, "kept": 0, "rejected": 0, "kept_percent": 0.0},
            **{
                name: {"language": 0}
                for name in (
                    "rejected_by_rule",
                    "rejected_by_first_rule",
                    "rejected_by_rule_alone",
                )
            },
            good_data={},
            replacements={},
            banned_substrings={},
            rare_characters={"count": 0, "characters": "", "found": {}},
            examples={},
            lengths={"characters": {"edges": [0, 1], "before": fields, "after": fields}},
        )
    )
    assert "nothing to loosen" in page.text
    assert "Which texts and characters cost most" not in page.text


def test_the_report_as_it_is_read_back_from_json():
    assert build(**json.loads(json.dumps(REPORT))) == build()
