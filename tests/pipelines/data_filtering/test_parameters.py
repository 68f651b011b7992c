"""The parameters of the filter, and those of every environment."""

from typing import get_args

import pytest
from filter_pairs import read_section
from pydantic import ValidationError

from ja_instruct.pipelines.data_filtering.parameters import DataFilteringParameters, ExtraRule

FIGURES = read_section("base")


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


@pytest.mark.parametrize("environment", ["demo", "test"])
def test_small_corpora_change_only_the_counts(environment: str) -> None:
    changes = read_section(environment)
    assert set(changes) == {"rare_char_count_max", "survivor_char_count_min"}
    DataFilteringParameters.model_validate(FIGURES | changes)


def test_tuned_has_every_rule() -> None:
    parameters = DataFilteringParameters.model_validate(FIGURES | read_section("tuned"))
    assert parameters.extra_rules == get_args(ExtraRule)
