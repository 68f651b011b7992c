"""Values that no other Arrow type can hold, as JSON text.

Their Arrow type is ``arrow.json``, which ``datasets`` calls ``Json``: its rows are decoded when
they are read in Python, and written to JSON Lines as text.
"""

from __future__ import annotations

import base64
import json
import math
from typing import TYPE_CHECKING, Any

from ja_instruct.tables.nested import rebuild

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pyarrow as pa


def portable(value: Any) -> Any:
    """Return a JSON value that every reader of JSON accepts.

    NaN and the infinities, which JSON does not have, become None. Integers beyond 64 bits, which
    ``datasets`` cannot decode, become text.

    >>> portable({"loss": [0.5, float("nan")], "id": 2**64})
    {'loss': [0.5, None], 'id': '18446744073709551616'}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else str(value)
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    return [portable(item) for item in value] if isinstance(value, list | tuple) else value


def dump(value: Any) -> str:
    """Return a value as compact JSON, not escaped; dates, decimals and bytes become texts."""
    return json.dumps(
        portable(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=as_text
    )


def as_json(content: Mapping[str, Any]) -> str:
    """Return the text of a JSON file as this project writes it."""
    return json.dumps(portable(content), ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def as_text(value: Any) -> str:
    """Return a value that JSON does not have as text: ISO 8601, Base64, or as Python prints it."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def is_json(type_: pa.DataType) -> bool:
    """Return whether the type is ``arrow.json``."""
    import pyarrow as pa

    return isinstance(type_, pa.JsonType)


def to_json_text(array: pa.Array) -> pa.Array:
    """Return every value as JSON text, null as null; keys of a struct that are null are left out.

    Arrow gives every struct the keys of all of them, so a null mostly stands for a missing key.
    """
    import pyarrow as pa

    texts = [None if value is None else dump(value) for value in load_values(array, nulls=False)]
    return pa.array(texts, pa.json_())


def load_values(array: pa.Array, *, nulls: bool = True) -> list[Any]:
    """Return the array's values like ``to_pylist``, with the values that JSON texts stand for.

    Args:
        array: Of any type.
        nulls: Keep the keys of structs that are null.
    """
    return [_load(value, array.type, nulls) for value in array.to_pylist()]


def _load(value: Any, type_: pa.DataType, nulls: bool) -> Any:
    from pyarrow import types

    if value is None:
        return None
    if is_json(type_):
        return json.loads(value)
    if types.is_struct(type_):
        items = [(field.name, _load(value[field.name], field.type, nulls)) for field in type_]
        return {key: item for key, item in items if nulls or item is not None}
    if types.is_list(type_) or types.is_large_list(type_):
        return [_load(item, type_.value_type, nulls) for item in value]
    return value


def json_form(type_: pa.DataType) -> pa.DataType:
    """Return the type in which JSON Lines hold a column: itself, text, or JSON text.

    Dictionary-encoded values are decoded; bytes, decimals, durations, times of day and times with a
    zone become texts, and what has no other form, such as maps, JSON text.
    """
    import pyarrow as pa
    from pyarrow import types

    if types.is_dictionary(type_):
        return json_form(type_.value_type)
    if types.is_struct(type_):
        return pa.struct([field.with_type(json_form(field.type)) for field in type_])
    if types.is_list(type_):
        return pa.list_(type_.value_field.with_type(json_form(type_.value_type)))
    if is_json(type_) or _is_written_as_is(type_):
        return type_
    texts = (
        types.is_temporal,
        types.is_decimal,
        types.is_binary,
        types.is_large_binary,
        types.is_fixed_size_binary,
        types.is_binary_view,
        types.is_string_view,
    )
    return pa.string() if any(is_type(type_) for is_type in texts) else pa.json_()


def _is_written_as_is(type_: pa.DataType) -> bool:
    from pyarrow import types

    if types.is_large_list(type_) or types.is_fixed_size_list(type_):
        return bool(json_form(type_.value_type).equals(type_.value_type))
    kinds = (
        types.is_null,
        types.is_boolean,
        types.is_integer,
        types.is_floating,
        types.is_string,
        types.is_large_string,
        types.is_date,
    )
    if types.is_timestamp(type_) and type_.tz is None:
        return True
    return any(is_type(type_) for is_type in kinds)


def to_json_form(table: pa.Table) -> pa.Table:
    """Return the table with every column in its ``json_form``; the others are not copied."""
    import pyarrow as pa

    for index, field in enumerate(table.schema):
        wanted = json_form(field.type)
        if not wanted.equals(field.type):
            chunks = [rebuild(chunk, wanted, _convert) for chunk in table.column(index).chunks]
            table = table.set_column(index, field.name, pa.chunked_array(chunks, wanted))
    return table


def _convert(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    import pyarrow as pa
    from pyarrow import types

    if is_json(wanted):
        return to_json_text(array)
    if types.is_dictionary(array.type):
        return rebuild(array.dictionary_decode(), wanted, _convert)
    if types.is_string_view(array.type):
        return array.cast(wanted)
    texts = [None if value is None else as_text(value) for value in array.to_pylist()]
    return pa.array(texts, wanted)


def text_columns(schema: pa.Schema) -> list[str]:
    """Return the columns, and the keys in them, that JSON Lines hold as JSON text.

    >>> import pyarrow as pa
    >>> turn = pa.struct({"role": pa.string(), "tool_calls": pa.json_()})
    >>> text_columns(pa.schema({"meta": pa.json_(), "conversations": pa.list_(turn)}))
    ['meta', 'conversations[].tool_calls']
    """
    return [path for field in schema for path in _text_paths(field.name, json_form(field.type))]


def _text_paths(path: str, type_: pa.DataType) -> Iterator[str]:
    from pyarrow import types

    if is_json(type_):
        yield path
    elif types.is_list(type_):
        yield from _text_paths(f"{path}[]", type_.value_type)
    elif types.is_struct(type_):
        for field in type_:
            yield from _text_paths(f"{path}.{field.name}", field.type)
