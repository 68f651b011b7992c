"""The JSON files of a model directory or an adapter; their types are checked when they are read.

Every function raises ``InputError`` for a file that cannot be used: it names the file and ends with
``remedy``, how to make or get it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from ja_instruct.models.text_model import text_settings
from ja_instruct.tables.json_objects import JSONObject, read_json_object

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"
INDEX_FILE = "model.safetensors.index.json"
PROVENANCE_FILE = "ja_instruct.json"

# PEFT's, of a file without these fields
DEFAULT_RANK = DEFAULT_ALPHA = 8

_REMEDY = "make or download the model again"


class _File(JSONObject):
    sha256: str
    bytes: int


class _Source(JSONObject):
    model_id: str | None = None
    revision: str | None = None
    weights_sha256: dict[str, str] | None = None
    files: dict[str, _File] | None = None
    source_files: dict[str, _File] | None = None


class _ProvenanceFields(JSONObject):
    stage: str | None = None
    parameters: int | None = None
    source: _Source = Field(_Source())
    base: _Source = Field(_Source())
    settings: dict[str, Any] = Field({})
    model_card: dict[str, Any] | None = None
    weights_sha256: dict[str, str] | None = None
    files: dict[str, _File] = Field({})


class _TextConfigFields(JSONObject):
    model_type: str = ""
    vocab_size: int | None = None
    quantization_config: dict[str, Any] | None = None


class _ConfigFields(_TextConfigFields):
    text_config: _TextConfigFields = Field(_TextConfigFields())


class _AdapterConfigFields(JSONObject):
    peft_type: str | None = None
    r: int | None = None
    lora_alpha: float | None = None
    target_modules: list[str] | str | None = None
    rank_pattern: dict[str, int] | None = None


class _IndexFields(JSONObject):
    weight_map: dict[str, str]


def remedy_of(stage: str | None) -> str:
    """Return how to make a directory again that a pipeline wrote, or another program."""
    if stage in ("quantization", "sft", "export"):
        return f"make it with 'kedro run --pipeline={stage}' (and the same --env)"
    return _REMEDY


def read_config(directory: Path, remedy: str = _REMEDY) -> dict[str, Any]:
    """Return ``config.json`` of a model."""
    return read_json_object(directory / CONFIG_FILE, remedy, _ConfigFields)


def read_generation_config(directory: Path, remedy: str = _REMEDY) -> dict[str, Any]:
    """Return ``generation_config.json`` of a model, or an empty dictionary if it has none."""
    path = directory / GENERATION_FILE
    return read_json_object(path, remedy) if path.exists() else {}


def read_end_ids(directory: Path, remedy: str = _REMEDY) -> tuple[int, ...]:
    """Return the tokens with which a model's ``generate`` ends by default.

    They are those of ``generation_config.json``, or without that file those of ``config.json``.
    """
    if (directory / GENERATION_FILE).exists():
        config = read_generation_config(directory, remedy)
    else:
        config = text_settings(read_config(directory, remedy))
    return as_ids(config.get("eos_token_id"))


def as_ids(value: int | Iterable[int] | None) -> tuple[int, ...]:
    """Return the token ids of a field that holds one, several or none.

    >>> as_ids(1), as_ids([1, 107]), as_ids(None)
    ((1,), (1, 107), ())
    """
    return (value,) if isinstance(value, int) else tuple(value or ())


def read_adapter_config(directory: Path, remedy: str = _REMEDY) -> dict[str, Any]:
    """Return ``adapter_config.json`` of an adapter."""
    return read_json_object(directory / ADAPTER_CONFIG_FILE, remedy, _AdapterConfigFields)


def read_weight_map(directory: Path, remedy: str = _REMEDY) -> dict[str, str] | None:
    """Return the file of each weight, or None if the directory has no index of its weights."""
    path = directory / INDEX_FILE
    return read_json_object(path, remedy, _IndexFields)["weight_map"] if path.exists() else None


def read_provenance(directory: Path, remedy: str = _REMEDY) -> dict[str, Any]:
    """Return ``ja_instruct.json`` of a directory, or an empty dictionary if it has none."""
    path = directory / PROVENANCE_FILE
    return read_json_object(path, remedy, _ProvenanceFields) if path.exists() else {}
