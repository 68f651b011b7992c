"""Check every parameter of an environment, also those that the run does not use."""

from __future__ import annotations

import difflib
import inspect
from typing import TYPE_CHECKING, Any

import yaml
from kedro.config import MissingConfigException
from kedro.framework.project import pipelines
from kedro.validation.type_extractor import TypeExtractor
from pydantic import BaseModel, ValidationError

from ja_instruct.config import RENAMED_PARAMETERS
from ja_instruct.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kedro.framework.context import KedroContext


def check_parameters(context: KedroContext) -> None:
    """Validate the parameters of every registered pipeline.

    Raises:
        InputError: Listing every parameter that is unknown, missing or out of range.
    """
    sections = _read_parameters(context)
    models = TypeExtractor(dict(pipelines)).extract_types_from_pipelines()
    problems = [
        f"'{section}' is not a parameter section{_suggest(section, models)}"
        for section in sections
        if section not in models
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
        conf = context.project_path / "conf"
        known = sorted(path.name for path in conf.iterdir() if path.is_dir())
        raise InputError(
            f"environment '{context.env}' does not exist: no folder conf/{context.env}"
            f"{_suggest(str(context.env), known)}; there are {', '.join(known)}"
        ) from error
    except yaml.YAMLError as error:
        raise InputError(f"a parameter file is not valid YAML: {error}") from error
    return sections


def _section_problems(section: str, values: Any, model: type[BaseModel]) -> list[str]:
    try:
        model.model_validate(values)
    except ValidationError as error:
        problems = []
        for detail in error.errors():
            key = ".".join([section, *map(str, detail["loc"])])
            if detail["type"] == "extra_forbidden":
                problems.append(_unknown_key_problem(key, _keys_at(model, detail["loc"][:-1])))
            elif not detail["loc"]:  # the whole section, which is too long to be shown
                problems.append(f"'{section}': {detail['msg'].removeprefix('Value error, ')}")
            elif detail["type"] == "missing":
                problems.append(f"'{key}' is missing")
            else:
                problems.append(f"'{key}' = {detail['input']!r}: {detail['msg']}")
        return problems
    return []


def _unknown_key_problem(key: str, known: Iterable[str]) -> str:
    if key in RENAMED_PARAMETERS:
        return f"'{key}' is now '{RENAMED_PARAMETERS[key]}'"
    return f"'{key}' is unknown{_suggest(key.rpartition('.')[2], known)}"


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        if not (inspect.isclass(annotation) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def _suggest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
