"""Which parameters are refused, and that every environment has good ones."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from kedro.validation import TypeExtractor
from pydantic import ValidationError

from ja_instruct.pipelines.data_filtering import create_pipeline
from ja_instruct.pipelines.data_filtering.parameters import DataFilteringParameters

CONF = Path(__file__).parents[3] / "conf"

FIGURES = {
    "rare_char_count_max": 19,
    "survivor_char_count_min": 10,
    "language": "ja",
    "language_percent_min": 60,
    "bad_records_max": 0,
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
