"""One line of JSON Lines as a record: a JSON object that Arrow can store."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ja_instruct.tables.json_types import JSONType

BAD_RECORD = "bad_record"
BAD_RECORD_TYPE: dict[str, JSONType] = {"source": str, "line": int, "error": str, "text": str}
BAD_RECORD_CHARS = 200

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# CLD2 rejects a text with a noncharacter, as it would reject one with the surrogate itself
SURROGATE_STAND_IN = "\ufdd0"


class BadRecordError(ValueError):
    """A line that is not a record; the message gives the reason."""


def make_decoder(replaced: list[str] | None = None) -> json.JSONDecoder:
    """Return a decoder that reads None for NaN and the infinities, also for 1e999.

    It appends each of them to ``replaced``.
    """

    def replace(number: str) -> None:
        if replaced is not None:
            replaced.append(number)

    def read_float(number: str) -> float | None:
        value = float(number)
        if math.isfinite(value):
            return value
        replace(number)
        return None

    return json.JSONDecoder(parse_float=read_float, parse_constant=replace)


_DECODER = make_decoder()


def parse_record(line: bytes, decoder: json.JSONDecoder = _DECODER) -> dict[str, Any]:
    """Return the JSON object of a line, by default with None for NaN and the infinities.

    Raises:
        BadRecordError: The line is not UTF-8, not JSON, or not an object.
    """
    try:
        record = decoder.decode(_decode_line(line))
    except UnicodeDecodeError as error:
        raise BadRecordError(
            f"not UTF-8 ({error.reason} at byte {error.start}); convert the file, for example "
            f"with 'iconv -t UTF-8'"
        ) from error
    except json.JSONDecodeError as error:
        raise BadRecordError(
            f"not JSON ({error.msg} at column {error.colno}); every line must hold one JSON object"
        ) from error
    except (RecursionError, ValueError) as error:  # too deep, or a number of thousands of digits
        raise BadRecordError(f"JSON that cannot be read ({error}); remove it") from error
    if not isinstance(record, dict):
        raise BadRecordError(
            f"a {type(record).__name__} where a JSON object is expected, such as "
            f"{{'input': '…', 'output': '…'}}"
        )
    return record


def _decode_line(line: bytes) -> str:
    text = line.decode("utf-8")
    if text.startswith("\ufeff"):
        raise json.JSONDecodeError("Unexpected UTF-8 BOM (decode using utf-8-sig)", text, 0)
    return text


def bad_record(source: str, line: int, error: str, raw: bytes) -> dict[str, Any]:
    """Return the value of the column ``bad_record``."""
    # a character has at most four bytes
    text = raw[: 4 * BAD_RECORD_CHARS].decode("utf-8", errors="replace").strip()
    return {"source": source, "line": line, "error": error, "text": text[:BAD_RECORD_CHARS]}


def replace_surrogates(value: Any) -> Any:
    """Return a JSON value with U+FDD0 in place of every surrogate, which is half a character.

    U+0000 in a key, which would end the name of an Arrow column, is replaced too.
    """
    if isinstance(value, str):
        return LONE_SURROGATE.sub(SURROGATE_STAND_IN, value)
    if isinstance(value, list):
        return [replace_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {
            replace_surrogates(key).replace("\0", SURROGATE_STAND_IN): replace_surrogates(item)
            for key, item in value.items()
        }
    return value
