"""JSON files of one object, with errors that name the file, the fault and the remedy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ja_instruct.config import explain_errors
from ja_instruct.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path


class JSONObject(BaseModel):
    """The fields of a JSON object that are read, with their types; others may be there too."""

    model_config = ConfigDict(extra="allow", strict=True)


def read_json_object(
    path: Path, remedy: str, fields: type[JSONObject] = JSONObject
) -> dict[str, Any]:
    """Return the object that a file holds as JSON in UTF-8.

    Args:
        path: The file.
        remedy: The end of every message: how to make or get the file.
        fields: The object's fields, which must have these types.

    Raises:
        InputError: The file cannot be read, is not JSON in UTF-8, holds something other than an
            object, or a field is missing or of another type.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__} where a JSON object is expected")
        fields.model_validate(content)
    except ValidationError as error:
        faults = explain_errors(error, fields)
        raise InputError(f"{path}: {'; '.join(faults[:3])}; {remedy}") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: {describe_fault(error, path)}; {remedy}") from error
    return content


def describe_fault(error: BaseException, path: Path) -> str:
    """Return why a text or JSON file cannot be read, from the error of reading it."""
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or error})"
    if path.is_file() and not path.stat().st_size:
        return "the file is empty"
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON (line {error.lineno}, column {error.colno}: {error.msg})"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 (byte {error.start:,}: {error.reason})"
    return f"cannot be read ({str(error).strip().partition(chr(10))[0]})"
