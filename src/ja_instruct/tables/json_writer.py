"""Arrow tables as JSON Lines."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, BinaryIO

from ja_instruct.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import date

    import pyarrow as pa

WRITTEN_ROWS = 1000


def write_tables(tables: Iterable[pa.Table], file: BinaryIO) -> None:
    """Write the rows as JSON Lines: UTF-8, not escaped, compact, null where a value is missing.

    Dates and times become ISO 8601 texts and are read back as texts. NaN and the infinities are
    written as ``json.dumps`` writes them.

    Raises:
        InputError: JSON cannot represent a column's type, such as bytes; the column is named.
    """
    import pyarrow as pa
    from arro3.io import write_ndjson

    schema = pa.schema([])
    for table in tables:
        if table.schema is not schema:
            schema = table.schema
            for field in schema:
                _require_json_form(field.name, field.type)
        for batch in table.to_batches(max_chunksize=WRITTEN_ROWS):
            # given a file, arro3 turns every OSError into a bare Exception
            lines = io.BytesIO()
            if all(map(_is_finite, batch.columns)):
                write_ndjson(batch, lines, explicit_nulls=True)
            else:
                lines.write(dump_rows(batch))
            file.write(lines.getbuffer())


def dump_rows(batch: pa.RecordBatch) -> bytes:
    """Return the rows as ``json`` writes them: slower, but with NaN and the infinities."""
    lines = (
        json.dumps(row, ensure_ascii=False, separators=(",", ":"), default=_as_iso) + "\n"
        for row in batch.to_pylist()
    )
    return "".join(lines).encode()


def _as_iso(value: date) -> str:
    return value.isoformat()


def _require_json_form(name: str, type_: pa.DataType) -> None:
    from pyarrow import types

    for index in range(type_.num_fields):
        _require_json_form(name, type_.field(index).type)
    writable = (
        types.is_null,
        types.is_boolean,
        types.is_integer,
        types.is_floating,
        types.is_string,
        types.is_large_string,
        types.is_date,
        types.is_list,
        types.is_large_list,
        types.is_fixed_size_list,
        types.is_struct,
    )
    is_naive_time = types.is_timestamp(type_) and type_.tz is None
    if not (is_naive_time or any(is_type(type_) for is_type in writable)):
        raise InputError(
            f"column '{name}' holds {type_}, which JSON cannot represent; turn it into text, or "
            f"remove it"
        )


def _is_finite(array: pa.Array) -> bool:
    """Return whether every float, at any depth, is neither NaN nor infinite."""
    import pyarrow.compute as pc
    from pyarrow import types

    if types.is_floating(array.type):
        return pc.all(pc.is_finite(array.drop_null())).as_py() is not False
    if array.type.num_fields and _has_floats(array.type):
        inner = array.flatten()
        return all(map(_is_finite, inner if isinstance(inner, list) else [inner]))
    return True


def _has_floats(type_: pa.DataType) -> bool:
    from pyarrow import types

    fields = range(type_.num_fields)
    return types.is_floating(type_) or any(_has_floats(type_.field(i).type) for i in fields)
