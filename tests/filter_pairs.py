"""Pairs, parameters and real conversations for the tests of the filter."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers

from ja_instruct.pipelines.data_filtering.batches import PairBatch, Texts
from ja_instruct.pipelines.data_filtering.parameters import DataFilteringParameters
from ja_instruct.pipelines.data_filtering.violations import Violation, Violations, join_violations

PROJECT = Path(__file__).parents[1]
CONF = PROJECT / "conf"
REAL_DATA = PROJECT.parent / "shared" / "data"

QUESTION = "日本の首都はどこですか。"
ANSWER = "日本の首都は東京です。"


def read_section(environment: str) -> Any:
    path = CONF / environment / "parameters_data_filtering.yml"
    return yaml.safe_load(path.read_text("utf-8"))["data_filtering"]


def make_parameters(**changes: Any) -> DataFilteringParameters:
    """Return the parameters of ``base``, without bans by count, with changes."""
    figures = read_section("base") | {"rare_char_count_max": 0, "survivor_char_count_min": 0}
    return DataFilteringParameters.model_validate(figures | changes)


def make_pairs(*pairs: tuple[str, str], **columns: list[Any]) -> Dataset:
    texts = {"instruction": [pair[0] for pair in pairs], "response": [pair[1] for pair in pairs]}
    return Dataset.from_dict(texts | columns)


def make_batch(pairs: Sequence[tuple[str, str]], start: int = 0) -> PairBatch:
    columns = [pa.array([pair[field] for pair in pairs], pa.string()) for field in (0, 1)]
    return PairBatch(start, *map(Texts.from_arrow, columns))


def make_violations(*found: tuple[int, str, str, str]) -> Violations:
    """Return violations of (row, rule, field, matched), in order."""
    return join_violations([Violations.from_list(Violation(*one) for one in found)])


def make_rule_counts(**rules: tuple[int, int, int, int]) -> dict[str, Any]:
    """Return the parts of a report in which each rule drops (all, first, alone, Japanese) pairs."""
    counts = {
        name: {rule: pairs[place] for rule, pairs in rules.items()}
        for place, name in enumerate(
            ("rejected_by_rule", "rejected_by_first_rule", "rejected_by_rule_alone")
        )
    }
    good = {
        rule: {"alone": alone, "sampled": alone, "in_language": japanese, "estimate": japanese}
        for rule, (_, _, alone, japanese) in rules.items()
    }
    return counts | {"good_data": good}


def make_character_tokenizer() -> Tokenizer:
    """Return a tokenizer with one token per character."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return tokenizer


def read_real_conversations() -> list[dict[str, Any]]:
    """Return the 11,020 real conversations; skips the test without them."""
    rows: list[dict[str, Any]] = []
    for name in ("dolly_ja", "model_answers_ja"):
        path = REAL_DATA / name / "conversations.jsonl"
        if not path.exists():
            pytest.skip(f"the real conversations are not at {path}")
        # some texts contain U+2028
        with path.open(encoding="utf-8", newline="\n") as lines:
            rows += map(json.loads, lines)
    assert len(rows) == 11_020
    return rows


def first_turn(row: dict[str, Any], role: str) -> str:
    turns = [turn for turn in row["conversations"] or [] if turn.get("role") == role]
    return (turns[0].get("content") or "") if turns else ""
