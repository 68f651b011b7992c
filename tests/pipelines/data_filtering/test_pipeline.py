"""The whole filter, against a straightforward reading of the recipe."""

import itertools
import json
import logging
import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pycld2
import pytest
import yaml
from datasets import Dataset
from filter_pairs import (
    ANSWER,
    CONF,
    QUESTION,
    first_turn,
    make_character_tokenizer,
    read_real_conversations,
    read_section,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner

from ja_instruct.datasets import ConversationsDataset, HubDataset, JSONLinesDataset
from ja_instruct.pipelines.data_filtering import create_pipeline
from ja_instruct.pipelines.data_filtering.parameters import DataFilteringParameters
from ja_instruct.tables.columns import as_dataset


@pytest.fixture(autouse=True, scope="module")
def quiet_kedro() -> Iterator[None]:
    """Keep Kedro's log of each step, half the time of a small run, out of hundreds of runs."""
    logger = logging.getLogger("kedro")
    level = logger.level
    logger.setLevel(logging.WARNING)
    yield
    logger.setLevel(level)


RESULTS = ("filtered_pairs", "rejected_pairs", "filter_report")
BASE = read_section("base")


class Case(NamedTuple):
    """What the filter is given."""

    rows: Any
    replacements: list[dict[str, str]]
    banned: list[str]
    banned_in_instruction: list[str]
    figures: dict[str, Any]


def run(case: Case) -> DataCatalog:
    catalog = DataCatalog(
        {
            "raw_conversations": MemoryDataset(as_dataset(case.rows, "raw_conversations")),
            "replacements": MemoryDataset(case.replacements),
            "banned_substrings": MemoryDataset(case.banned),
            "banned_instruction_substrings": MemoryDataset(case.banned_in_instruction),
            "target_tokenizer": MemoryDataset(make_character_tokenizer()),
            "evaluation_tasks": MemoryDataset([]),
            "params:data_filtering": MemoryDataset(
                DataFilteringParameters.model_validate(BASE | case.figures)
            ),
            **{name: MemoryDataset() for name in RESULTS},
        }
    )
    # plots and page have their own tests, and take longer than the filter
    SequentialRunner().run(create_pipeline().to_outputs(*RESULTS), catalog)
    return catalog


Rows = list[dict[str, Any]]


def count_slowly(rows: Rows) -> Counter[str]:
    return Counter("".join(row["response"] + " " + row["instruction"] for row in rows))


def percent_slowly(text: str, language: str) -> int:
    found = [part for part in pycld2.detect(text)[2] if part[1] == language]
    return max([percent for _, _, percent, _ in found], default=-1)


def judge_slowly(row: dict[str, Any], rare: list[str], case: Case) -> list[str]:
    """Return the rules that a repaired row violates, but the one on the survivors' characters."""
    fields = [row["instruction"], row["response"]]
    bans = {
        "banned_substring": (case.banned, fields),
        "banned_instruction_substring": (case.banned_in_instruction, fields[:1]),
        "rare_character": (rare, fields),
    }
    reasons = [
        rule
        for rule, (texts, places) in bans.items()
        if any(text in field for text in texts for field in places)
    ]
    if reasons:
        return reasons
    try:
        shares = [percent_slowly(field, case.figures["language"]) for field in fields]
    except (pycld2.error, UnicodeEncodeError):
        return ["language_undetectable"]
    return ["language"] if min(shares) < case.figures["language_percent_min"] else []


def filter_slowly(case: Case) -> tuple[Rows, Rows]:
    """Filter ``case`` step by step as the recipe words it; sharing no code with the pipeline."""
    rows = [
        {"instruction": first_turn(row, "user"), "response": first_turn(row, "assistant")}
        | {name: value for name, value in row.items() if name not in ("instruction", "response")}
        for row in case.rows
    ]
    counts = count_slowly(rows)
    rare = [c for c, times in counts.items() if times <= case.figures["rare_char_count_max"]]
    for row in rows:
        for entry, field in itertools.product(case.replacements, ("instruction", "response")):
            row[field] = row[field].replace(entry["find"], entry["replace"])
    reasons = [judge_slowly(row, rare, case) for row in rows]
    survivors = count_slowly([row for row, found in zip(rows, reasons, strict=True) if not found])
    for row, found in zip(rows, reasons, strict=True):
        times = [survivors[character] for character in row["instruction"] + row["response"]]
        if not found and min(times, default=0) < case.figures["survivor_char_count_min"]:
            found.append("rare_survivor_character")
    judged = list(zip(rows, reasons, strict=True))
    return (
        [row for row, found in judged if not found],
        [row | {"reasons": found} for row, found in judged if found],
    )


def assert_parity(case: Case) -> tuple[int, Counter[str]]:
    """Hold the pipeline equal to ``filter_slowly``; return what was kept, and rejected by rule."""
    raw = Dataset.from_list(case.rows).to_list()  # turns with the keys that Arrow adds
    kept, dropped = filter_slowly(case._replace(rows=raw))
    catalog = run(case)
    assert catalog.load("filtered_pairs").to_list() == kept
    rejected = catalog.load("rejected_pairs").to_list()
    for row in rejected:
        assert row.pop("reason") == row["reasons"][0]
        details = row.pop("reason_details")
        assert list(dict.fromkeys(detail["rule"] for detail in details)) == row["reasons"]
        for detail in details:
            if not detail["rule"].startswith("language"):
                assert all(text in row[detail["side"]] for text in detail["matched"])
    assert rejected == dropped
    by_rule = Counter(itertools.chain.from_iterable(row["reasons"] for row in dropped))
    report = catalog.load("filter_report")
    assert report["summary"]["read"] == len(case.rows)
    assert report["summary"]["kept"] == len(kept)
    assert report["summary"]["rejected"] == len(dropped)
    assert Counter(report["rejected_by_rule"]) == by_rule
    assert json.loads(json.dumps(report)) == report
    return len(kept), by_rule


JAPANESE = ["日本の首都は東京です。", "これは良い本だと思います。", "今日は晴れです。"]
PIECES = [
    *["翻訳", "语", "よしmitsu", "よし", "mitsu", "♪", "松下", "三菱", " ", "\n", "\u2028"],
    *["𠮷", "𩸽", "\x0b", "\x00", "A", "你好我们是中国人。", "Hello, this is an English text. "],
]
# one finds part of another, one may join what another finds
TABLE = [("よしmitsu", "由光"), ("よし", "良"), ("mitsu", "ミツ"), ("♪", ""), ("语", "語")]


def make_texts(pieces: list[str], most: int) -> st.SearchStrategy[str]:
    return st.builds(
        lambda start, rest: "".join([*start, *rest]),
        st.lists(st.sampled_from(JAPANESE), max_size=most),
        st.lists(st.sampled_from(pieces), max_size=most),
    )


texts = make_texts(JAPANESE + PIECES, 3)


def make_record(*contents: str) -> dict[str, Any]:
    """Return a conversation of a user's and an assistant's turn."""
    turns = zip(("user", "assistant"), contents, strict=True)
    return {"conversations": [{"role": role, "content": content} for role, content in turns]}


well_formed = st.builds(make_record, texts, texts).map(lambda record: record["conversations"])
any_turns = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "assistant", "system", "", None]),
            "content": st.none() | texts,
        },
    ),
    max_size=5,
)
rows = st.fixed_dictionaries(
    {
        "conversations": well_formed | well_formed | any_turns | st.none(),
        "instruction": st.none() | st.text(max_size=3),
        "id": st.text(max_size=5),
        "tags": st.lists(st.integers(0, 9), max_size=2) | st.none(),
    }
)
COUNTS = {"rare_char_count_max": st.integers(0, 4), "survivor_char_count_min": st.integers(0, 6)}
substrings = st.lists(st.sampled_from(["翻訳", "语", "三菱", "♪", "みつ"]), unique=True, max_size=3)
cases = st.builds(
    Case,
    rows=st.lists(rows, min_size=1, max_size=12),
    replacements=st.lists(st.sampled_from(TABLE), unique=True).map(
        lambda table: [{"find": find, "replace": replace} for find, replace in table]
    ),
    banned=substrings,
    banned_in_instruction=substrings,
    figures=st.fixed_dictionaries(
        {
            "language": st.just("ja"),
            "language_percent_min": st.sampled_from([0, 40, 60, 95]),
        }
        | COUNTS
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases)
def test_any_conversations_are_filtered_like_the_recipe(case: Case) -> None:
    assert_parity(case)


wild_texts = make_texts([*PIECES, "\ud800", "\udc00", "\ufdd0", "\ufffe"], 2)
wild_records = st.lists(st.builds(make_record, wild_texts, wild_texts), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(wild_records, st.fixed_dictionaries(COUNTS))
def test_files_with_lone_surrogates_are_filtered_like_the_recipe(
    records: list[dict[str, Any]], figures: dict[str, int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "raw.jsonl"
        lines = [json.dumps(record) for record in records]
        path.write_text("".join(line + "\n" for line in lines), "ascii")
        read = JSONLinesDataset(filepath=path).load()
        kept = run(make_recipe_case(read, **figures)).load("filtered_pairs").to_list()
    # two adjacent halves are one character once JSON is read
    as_read = [json.loads(line) for line in lines]
    expected, _ = filter_slowly(make_recipe_case(as_read, **figures))
    assert kept == expected


def make_recipe_case(rows: Any, **figures: int) -> Case:
    lists = ("replacements", "banned_substrings", "banned_instruction_substrings")
    paths = (CONF / f"base/word_lists/{name}.yml" for name in lists)
    return Case(rows, *(yaml.safe_load(path.read_text("utf-8")) for path in paths), BASE | figures)


@pytest.mark.parametrize(
    ("figures", "kept_min"),
    [({}, 6000), ({"rare_char_count_max": 3, "survivor_char_count_min": 4}, 7000)],
)
def test_real_conversations_are_filtered_like_the_recipe(
    figures: dict[str, int], kept_min: int
) -> None:
    rows = read_real_conversations()
    kept, by_rule = assert_parity(make_recipe_case(rows, **figures))
    assert kept > kept_min
    assert min(by_rule[rule] for rule in ("banned_substring", "rare_character", "language")) > 100
    assert by_rule["rare_survivor_character"] > 100


def test_the_purpose_of_each_step() -> None:
    answers = [
        *[ANSWER] * 8,
        "日本の首都は东京です。",
        ANSWER + "语",
        ANSWER + "岚",
        "The capital of Japan is Tokyo.",
        ANSWER + "\x0b\x0b",
        ANSWER + "語語",
        "",
    ]
    rows = [make_record(QUESTION, answer) for answer in answers]
    rows.append({"conversations": [{"role": "user", "content": QUESTION}]})
    catalog = run(make_recipe_case(rows, rare_char_count_max=1, survivor_char_count_min=3))
    reasons = catalog.load("rejected_pairs")["reason"][:]
    assert reasons == [
        "banned_substring",
        "rare_character",
        "rare_character",
        "language_undetectable",
        *["language"] * 2,
    ]
    # the rare 语 is repaired and, with the two of the other record, common enough
    kept = catalog.load("filtered_pairs")["response"][:]
    assert kept == [*[ANSWER] * 8, ANSWER + "語", ANSWER + "語語"]
    report = catalog.load("filter_report")
    assert report["replacements"]["语"] == 1
    assert set("语岚东J") < set(report["rare_characters"]["characters"])


def test_nodes_are_named_as_their_functions() -> None:
    assert all(node.name == node.func.__name__ for node in create_pipeline().nodes)


NO_BANS_BY_COUNT = {"rare_char_count_max": 0, "survivor_char_count_min": 0}
OTHER_VALUES = ["web", {"origin": "book", "page": 3}, None, 2**64, ["x", {"y": math.nan}], {}]


def talk_with_tools(value: Any) -> list[dict[str, Any]]:
    call = {"name": "search", "arguments": value}
    return [
        {"role": "user", "content": QUESTION, "weight": value},
        {"role": "assistant", "content": ANSWER, "tool_calls": [call]},
    ]


def open_source(kind: str, folder: Path) -> Any:
    # datasets itself reads no integer beyond 64 bits
    values = [7 if value == 2**64 and kind == "hub" else value for value in OTHER_VALUES]
    rows = [{"meta": value, "conversations": talk_with_tools(value)} for value in values]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    filepath = str(folder / "train.jsonl")
    return {
        "lines": lambda: JSONLinesDataset(filepath=filepath),
        "sources": lambda: ConversationsDataset(sources=[{"files": filepath}]),
        "hub": lambda: HubDataset(dataset_name=str(folder), dataset_kwargs={"split": "train"}),
        "list": lambda: MemoryDataset(rows),
    }[kind]()


@pytest.mark.parametrize("kind", ["lines", "sources", "hub", "list"])
def test_other_columns_and_keys_of_turns_may_hold_anything(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = open_source(kind, tmp_path)
    if kind in ("lines", "sources"):
        source.check_records(["conversations"], 0)
    catalog = run(Case(source.load(), [], [], [], NO_BANS_BY_COUNT))
    report = catalog.load("filter_report")
    assert report["summary"]["kept"] == len(OTHER_VALUES)
    assert "meta" in report["json_text_columns"]
    assert caplog.text.count("hold values of several types, which are kept as JSON text") == 1
    saved = JSONLinesDataset(filepath=tmp_path / "filtered_pairs.jsonl")
    saved.save(catalog.load("filtered_pairs"))
    for line in (tmp_path / "filtered_pairs.jsonl").read_text("utf-8").split("\n")[:-1]:
        json.loads(line, parse_constant=pytest.fail)
    read = saved.load()
    assert read["response"][:] == [ANSWER] * len(OTHER_VALUES)
    kept = [value and json.loads(value) for value in read["meta"]]
    assert kept[:3] == OTHER_VALUES[:3]
    assert kept[3] == (7 if kind == "hub" else str(2**64))
    assert kept[4] == ["x", {"y": None}]
    turns = [(turn["role"], turn["content"]) for turn in read["conversations"][0]]
    assert turns == [("user", QUESTION), ("assistant", ANSWER)]


def test_joined_conversations_are_filtered_like_their_parts() -> None:
    """Conversations of two exchanges, each a real conversation of one."""
    parts = read_real_conversations()[::20]
    parts = parts[: len(parts) // 2 * 2]
    lists = [
        yaml.safe_load((CONF / "base" / "word_lists" / f"{name}.yml").read_text("utf-8"))
        for name in ("replacements", "banned_substrings")
    ]
    joined = [
        {"conversations": one["conversations"] + other["conversations"]}
        for one, other in zip(parts[::2], parts[1::2], strict=True)
    ]

    def filter_talks(talks: list[dict[str, Any]], **figures: Any) -> list[dict[str, Any]]:
        counts = {"rare_char_count_max": 1, "survivor_char_count_min": 3}
        case = Case(talks, *lists, [], counts | figures)
        kept: list[dict[str, Any]] = run(case).load("filtered_pairs").to_list()
        return kept

    recipe = [(pair["instruction"], pair["response"]) for pair in filter_talks(parts)]
    split = filter_talks(joined, multi_turn="split")
    assert 0.2 < len(split) / len(parts) < 0.8
    assert [(pair["instruction"], pair["response"]) for pair in split] == recipe

    # whole records leave other survivors, whose characters are counted again
    kept = filter_talks(parts, survivor_char_count_min=0)
    texts = [[pair["instruction"], pair["response"]] for pair in kept]
    sources = [pair["conversations"] for pair in kept]
    both = [
        before + after
        for one, before, other, after in zip(sources, texts, sources[1:], texts[1:], strict=False)
        if {"conversations": one + other} in joined
    ]
    whole = filter_talks(joined, multi_turn="all", survivor_char_count_min=0)
    assert [
        [*(turn["content"] for turn in pair["history"]), pair["instruction"], pair["response"]]
        for pair in whole
    ] == both
