"""The base of every typed parameter section, what several share, and the errors of their keys."""

from __future__ import annotations

import difflib
import inspect
import string
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pydantic import ValidationInfo
    from pydantic_core import ErrorDetails

# The former name of a parameter, with its sections, and its name today: an error reports the new
# name. The new key stands beside the old one.
RENAMED_PARAMETERS = {
    "data_filtering.further_rules": "extra_rules",
    "inference.batching.prefill_tokens": "prefill_chunk_size",
    "inference.batching.slots": "max_num_seqs",
    "inference.shot_diversity": "example_diversity",
    "sft.answer_only_loss": "completion_only_loss",
    "sft.model_card.filtered_pairs.licence": "license",
    "sft.model_card.licence": "license",
    "sft.model_card.licence_terms": "license_terms",
    "sft.model_card.qa_pairs.licence": "license",
}

# of a value in a message; texts and lists may be pages
SHOWN_CHARS = 80


class Parameters(BaseModel):
    """A frozen parameter section that refuses unknown keys and numbers that are not finite."""

    # NaN and the infinities are not JSON, and no parameter has a use for them
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_not_a_boolean_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic reads true as 1, and YAML 1.1 yes and on as true."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        kinds = {annotation, *get_args(annotation)}
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise ValueError("must be a number")
        return value


class GpuParameters(Parameters):
    """GPU resources of a node; a null is estimated from model and parameters.

    They decide where a node runs and do not change its result.
    """

    devices: int | None = Field(ge=1, description="Number of CUDA devices")
    memory_gb: float | None = Field(gt=0, description="Peak memory on each device, in 10⁹ bytes")
    disk_gb: float | None = Field(ge=0, description="Written to disk, in 10⁹ bytes")


def check_devices(gpu: GpuParameters, device: str, *, refuse_several: str = "") -> None:
    """Check that a node can use the devices that its section requests.

    Args:
        gpu: The requested resources.
        device: ``cpu`` or ``cuda``, where the node runs.
        refuse_several: The reason why the node cannot use several devices; empty if it can.

    Raises:
        ValueError: The node runs on the CPU, or cannot use so many devices.
    """
    if gpu.devices is None:
        return
    if device == "cpu":
        raise ValueError(
            f"gpu.devices = {gpu.devices}, but device 'cpu' uses none; leave gpu.devices null"
        )
    if gpu.devices > 1 and refuse_several:
        raise ValueError(f"gpu.devices = {gpu.devices}, but {refuse_several}")


def parameter_names(section: str, selected: Mapping[str, Any]) -> tuple[str, ...]:
    """Return Kedro's names of parameters that are selected as for pydantic's ``exclude``.

    >>> parameter_names("sft", {"resume": True, "gpu": {"memory_gb", "disk_gb"}})
    ('params:sft.resume', 'params:sft.gpu.disk_gb', 'params:sft.gpu.memory_gb')
    """
    names: list[str] = []
    for key, value in selected.items():
        names += [key] if value is True else [f"{key}.{name}" for name in sorted(value)]
    return tuple(f"params:{section}.{name}" for name in names)


def explain_errors(error: ValidationError, model: type[BaseModel], section: str = "") -> list[str]:
    """Return one message for each wrong value: its key, what is wrong, and the keys that exist.

    Args:
        error: The error of ``model.model_validate``.
        model: The type of the section.
        section: The section's name, which begins every key.
    """
    return [_explain(detail, model, section) for detail in error.errors()]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a suggestion to append to a message, or an empty string if no name is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def require_known(name: str, known: Sequence[str], kind: str) -> None:
    """Raise ``ValueError`` with the nearest name if ``name`` is not among those of its kind.

    >>> require_known("adamw8bit", ["adamw_8bit", "sgd"], "an optimizer")
    Traceback (most recent call last):
    ValueError: not the name of an optimizer; did you mean 'adamw_8bit'?
    """
    if name not in known:
        all_names = f"; the names are {', '.join(known)}"
        raise ValueError(f"not the name of {kind}{did_you_mean(name, known) or all_names}")


def parse_placeholders(text: str, names: Sequence[str]) -> list[str]:
    """Check a text that is filled in by ``str.format``; return its placeholders in order.

    Args:
        text: With braces around each name, and doubled braces for those of the text itself.
        names: The names that it must contain; an empty name is ``{}``.

    Raises:
        ValueError: A brace is not part of a placeholder or doubled, a placeholder is not among
            ``names`` or has a format, or one is missing.

    >>> parse_placeholders('{{"質問": "{input}"}}', ["input"])
    ['input']
    >>> parse_placeholders('{"質問": "{input}"}', ["input"])
    Traceback (most recent call last):
    ValueError: '{"質問": …}' is not among its placeholders {input}; write {{ and }} for ...
    """
    wanted = " and ".join(f"{{{name}}}" for name in names)
    remedy = "write {{ and }} for braces that belong to the text"
    try:
        fields = [field for field in string.Formatter().parse(text) if field[1] is not None]
    except ValueError as error:
        raise ValueError(f"has an unpaired brace ({error}); {remedy}") from error
    for _, name, spec, conversion in fields:
        if name not in names:
            shown = f"{name}: …" if spec else name
            raise ValueError(f"'{{{shown}}}' is not among its placeholders {wanted}; {remedy}")
        if spec or conversion:
            raise ValueError(f"placeholders have no format: write {{{name}}} alone; {remedy}")
    found = [str(name) for _, name, _, _ in fields]
    if not {*names} <= {*found}:
        raise ValueError(f"must contain {wanted}")
    return found


def _explain(detail: ErrorDetails, model: type[BaseModel], section: str) -> str:
    location = detail["loc"]
    key = ".".join(map(str, [section, *location] if section else location))
    message = detail["msg"].removeprefix("Value error, ")
    # YAML has lists, which parameters keep as tuples
    message = message.replace("a valid tuple", "a list").replace("Tuple", "List")
    if detail["type"] == "extra_forbidden":
        if key in RENAMED_PARAMETERS:
            return f"'{key}' is now '{RENAMED_PARAMETERS[key]}'"
        known = _keys_at(model, location[:-1])
        all_keys = f"; the keys are {', '.join(known)}" if known else ""
        return f"'{key}' is unknown{did_you_mean(str(location[-1]), known) or all_keys}"
    if not key:
        return message
    if not location or (detail["type"] == "value_error" and isinstance(detail["input"], dict)):
        return f"'{key}': {message}"  # a section is too long to be shown
    if detail["type"] == "missing":
        return f"'{key}' is missing"
    if isinstance(detail["input"], bool) and detail["type"] in ("literal_error", "string_type"):
        message += "; write no, yes, on and off in quotes, since YAML reads them as booleans"
    value = repr(detail["input"])
    shown = value if len(value) <= SHOWN_CHARS else f"{value[:SHOWN_CHARS]}…"
    return f"'{key}' = {shown}: {message}"


def _keys_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        if not (inspect.isclass(annotation) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
