"""Blocks of JSON Lines that pyarrow reads as ``json.loads`` would."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ja_instruct.tables.json_types import EXACT_INTEGER_MAX, JSONText, JSONType, holds, to_arrow

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

NEWLINE, CARRIAGE_RETURN, OPENING, CLOSING = b"\n\r{}"


def parse_plain(block: bytes, types: Mapping[str, JSONType]) -> pa.Table | None:
    """Return the records as pyarrow reads them, or None where ``json.loads`` might differ.

    Without given types pyarrow turns texts into dates; it accepts bytes that are not UTF-8, rounds
    integers in a column of floats, and reads two records on a line or one on two lines.

    Args:
        block: Whole lines; the last need not end.
        types: The columns' types so far; a block that would widen them, or that has JSON text,
            gives None.
    """
    import pyarrow as pa
    from pyarrow import json as arrow_json

    count = _count_objects(block) if types and not holds(dict(types), JSONText) else None
    if count is None or not _is_utf8(block):
        return None
    schema = pa.schema(to_arrow(dict(types)))
    try:
        table = arrow_json.read_json(
            pa.BufferReader(block),
            # one block, or pyarrow would join every text that crosses a boundary
            read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=arrow_json.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="error"
            ),
        )
        # pyarrow 25 makes lists of nulls that are shorter than their offsets
        table.validate()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    if table.num_rows != count or not table.schema.equals(schema):
        return None
    for column, known in zip(table.columns, types.values(), strict=True):
        if holds(known, int, float) and not all(_is_exact(chunk, known) for chunk in column.chunks):
            return None
    return table


def _count_objects(block: bytes) -> int | None:
    """Return the number of lines if each begins and ends as an object, else None.

    No JSON value continues between ``}`` and ``{``, so equal numbers of records and lines mean one
    record a line. pyarrow 25 crashes on a block that begins with null, which gives None here.
    """
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == NEWLINE)
    if not len(ends) or ends[-1] != len(data) - 1:
        ends = np.append(ends, len(data))
    starts = np.concatenate(([0], ends[:-1] + 1))
    if not (data[starts] == OPENING).all():
        return None
    lasts = ends - 1
    lasts = lasts - (data[lasts] == CARRIAGE_RETURN)
    return len(ends) if (data[lasts] == CLOSING).all() else None


def _is_utf8(block: bytes) -> bool:
    import pyarrow as pa

    offsets = pa.py_buffer(np.array([0, len(block)], np.int64))
    text = pa.Array.from_buffers(pa.large_string(), 1, [None, offsets, pa.py_buffer(block)])
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _is_exact(array: pa.Array, known: JSONType) -> bool:
    """Return whether no number lost digits, neither as an integer nor as a float."""
    if isinstance(known, dict):
        fields = array.flatten()
        return all(_is_exact(*pair) for pair in zip(fields, known.values(), strict=True))
    if isinstance(known, list):
        return _is_exact(array.flatten(), known[0])
    if known is int or known is float:
        numbers = array.drop_null().to_numpy(zero_copy_only=False)
        return bool((np.abs(numbers) < EXACT_INTEGER_MAX).all())
    return True
