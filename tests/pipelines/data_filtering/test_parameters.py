"""Which parameters are refused, and that every environment has good ones."""

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from kedro.validation import TypeExtractor
from pydantic import ValidationError

from ja_instruct.pipelines.data_filtering import create_pipeline
from ja_instruct.pipelines.data_filtering.parameters import (
    DataFilteringParameters,
    ExtraRule,
)

CONF = Path(__file__).parents[3] / "conf"

FIGURES = {
    "rare_char_count_max": 19,
    "survivor_char_count_min": 10,
    "language": "ja",
    "language_percent_min": 60,
    "bad_records_max": 0,
    "extra_rules": [],
    "response_tokens_min": 1,
    "pair_tokens_max": 2000,
    "repeated_sentence_percent_max": 30,
    "repeated_ngram_percent_max": 60,
    "repeated_ngram_letters_min": 300,
    "han_chars_without_kana_max": 20,
    "foreign_han_chars_without_kana_max": 12,
    "contamination_ngram_chars": 25,
    "contamination_share_min": 0.5,
    "contamination_stock_texts_max": 5,
    "near_duplicate_jaccard_min": 0.6,
}


def read_section(environment: str) -> Any:
    path = CONF / environment / "parameters_data_filtering.yml"
    return yaml.safe_load(path.read_text("utf-8"))["data_filtering"]


@pytest.mark.parametrize(
    "change",
    [
        {"rare_char_count_max": -1},
        {"survivor_char_count_min": -1},
        {"language_percent_min": 101},
        {"language": "jp"},
        {"language_percent_mim": 60},
        {"bad_records_max": -1},
        {"extra_rules": ["citation_marks"]},
        {"near_duplicate_jaccard_min": 0.3},
        {"near_duplicate_jaccard_min": 1.01},
        {"contamination_ngram_chars": 9},
        {"contamination_share_min": 0.0},
        {"contamination_share_min": 1.1},
        {"contamination_stock_texts_max": 0},
    ],
)
def test_parameters_out_of_bounds_are_refused(change: dict[str, object]) -> None:
    DataFilteringParameters.model_validate(FIGURES)
    with pytest.raises(ValidationError, match=next(iter(change))):
        DataFilteringParameters.model_validate(FIGURES | change)


@pytest.mark.parametrize("missing", FIGURES)
def test_no_parameter_has_a_default(missing: str) -> None:
    figures = {name: value for name, value in FIGURES.items() if name != missing}
    with pytest.raises(ValidationError, match=missing):
        DataFilteringParameters.model_validate(figures)


def test_kedro_can_type_the_parameters() -> None:
    types = TypeExtractor({"data_filtering": create_pipeline()}).extract_types_from_pipelines()
    assert types == {"data_filtering": DataFilteringParameters}


def test_the_configuration_of_every_environment_is_valid() -> None:
    base = read_section("base")
    assert base == FIGURES
    for environment in ("demo", "test"):
        overlay = read_section(environment)
        assert set(overlay) == {"rare_char_count_max", "survivor_char_count_min"}
        DataFilteringParameters.model_validate(base | overlay)


def test_tuned_asks_for_every_rule_there_is() -> None:
    parameters = DataFilteringParameters.model_validate(
        read_section("base") | read_section("tuned")
    )
    assert parameters.extra_rules == get_args(ExtraRule)
