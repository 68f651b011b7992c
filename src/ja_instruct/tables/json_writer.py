"""Arrow tables as JSON Lines."""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING, BinaryIO

from ja_instruct.tables.json_text import dump, portable, to_json_form

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow as pa

WRITTEN_ROWS = 1000

logger = logging.getLogger(__name__)


def write_tables(tables: Iterable[pa.Table], file: BinaryIO) -> None:
    """Write the rows as JSON Lines: UTF-8, not escaped, compact, null where a value is missing.

    Dates and times become ISO 8601 texts and are read back as texts; other types that JSON does not
    have become text or JSON text (``ja_instruct.tables.json_text.json_form``). NaN and the
    infinities become null; a warning gives the number of such rows.
    """
    from arro3.io import write_ndjson

    replaced = 0
    for table in tables:
        for batch in to_json_form(table).to_batches(max_chunksize=WRITTEN_ROWS):
            # given a file, arro3 turns every OSError into a bare Exception
            lines = io.BytesIO()
            if all(map(_is_finite, batch.columns)):
                write_ndjson(batch, lines, explicit_nulls=True)
            else:
                data, rows = dump_rows(batch)
                lines.write(data)
                replaced += rows
            file.write(lines.getbuffer())
    if replaced:
        logger.warning(
            "%d row(s) contain NaN or an infinity, which JSON does not have; null is written for "
            "it",
            replaced,
        )


def dump_rows(batch: pa.RecordBatch) -> tuple[bytes, int]:
    """Return the rows as ``json`` writes them, and how many have NaN or an infinity; slower."""
    rows = batch.to_pylist()
    # NaN is not equal to None, and no other value is changed
    replaced = sum(portable(row) != row for row in rows)
    return "".join(f"{dump(row)}\n" for row in rows).encode(), replaced


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
