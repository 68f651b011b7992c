"""Check every parameter of an environment, also those that the run does not use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from kedro.config import MissingConfigException
from kedro.framework.project import pipelines
from kedro.validation.type_extractor import TypeExtractor
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from ja_instruct.config import did_you_mean, explain_errors
from ja_instruct.errors import InputError
from kedro_freshness.inspection import SECTION as FRESHNESS

if TYPE_CHECKING:
    from kedro.framework.context import KedroContext


def check_parameters(context: KedroContext) -> None:
    """Validate the parameters of every registered pipeline.

    Raises:
        InputError: Listing every parameter that is unknown, missing or out of range.
    """
    sections = _read_parameters(context)
    models = TypeExtractor(dict(pipelines)).extract_types_from_pipelines()
    problems = [
        f"'{section}' is not a parameter section{did_you_mean(section, models)}"
        for section in sections
        if section not in models and section != FRESHNESS
    ]
    for section, model in models.items():
        if section not in sections:
            problems.append(f"section '{section}' is missing; conf/base/ should hold it")
        elif issubclass(model, BaseModel):
            problems += _section_problems(section, sections[section], model)
    if problems:
        raise InputError(
            "parameters cannot be used:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
            + f"\nThey come from conf/base, conf/{context.env or 'local'} and --params."
        )


def _read_parameters(context: KedroContext) -> dict[str, Any]:
    try:
        sections: dict[str, Any] = context.config_loader["parameters"]
    except MissingConfigException as error:
        loader: Any = context.config_loader
        known = loader.environments()
        if "base" not in known:
            raise InputError(
                f"{Path(loader.conf_source).absolute()} has no configuration (no folder base); "
                f"change to the project's folder, or give --conf-source"
            ) from error
        raise InputError(
            f"environment '{context.env}' does not exist: no folder conf/{context.env}"
            f"{did_you_mean(str(context.env), known)}; there are {', '.join(known)}"
        ) from error
    except yaml.YAMLError as error:
        raise InputError(f"a parameter file is not valid YAML: {error}") from error
    # keys in two files of one environment, text that is not UTF-8, unknown ${globals:...}
    except (ValueError, OmegaConfBaseException) as error:
        raise InputError(f"the parameter files cannot be read: {error}") from error
    return sections


def _section_problems(section: str, values: Any, model: type[BaseModel]) -> list[str]:
    try:
        model.model_validate(values)
    except ValidationError as error:
        return explain_errors(error, model, section)
    return []
