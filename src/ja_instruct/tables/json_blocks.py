"""Blocks of JSON Lines read by pyarrow, where it reads what ``json.loads`` would."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ja_instruct.tables.json_types import EXACT_INTEGER_MAX, JSONType, to_arrow

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

NEWLINE, CARRIAGE_RETURN, OPENING, CLOSING = b"\n\r{}"


def parse_plain(block: bytes, types: Mapping[str, JSONType]) -> pa.Table | None:
    """Return the records as pyarrow reads them, None where ``json.loads`` might differ.

    pyarrow turns texts into dates unless told the types, passes on what is not UTF-8, rounds
    integers that it puts among floats, and takes one line for two records or two for one.

    Args:
        block: Whole lines; the last need not end.
        types: Those of the columns so far; a block that widens them is one that might differ.
    """
    import pyarrow as pa
    from pyarrow import json as arrow_json

    count = _count_objects(block) if types else None
    if count is None or not _is_utf8(block):
        return None
    schema = pa.schema(to_arrow(dict(types)))
    try:
        table = arrow_json.read_json(
            pa.BufferReader(block),
            # one block, or every text that crosses a boundary would have to be joined again
            read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=arrow_json.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="error"
            ),
        )
        # pyarrow 25 makes lists of nulls that are shorter than they say
        table.validate()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    if table.num_rows != count or not table.schema.equals(schema):
        return None
    for column, known in zip(table.columns, types.values(), strict=True):
        if _has_numbers(known) and not all(_is_exact(chunk, known) for chunk in column.chunks):
            return None
    return table


def _count_objects(block: bytes) -> int | None:
    """Return the number of lines when each begins and ends as an object, else None.

    Between ``}`` and ``{`` no JSON value goes on, so as many records as lines mean one each.
    pyarrow 25 dies of a block that begins with null, which this refuses.
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


def _has_numbers(known: JSONType) -> bool:
    if isinstance(known, dict):
        return any(map(_has_numbers, known.values()))
    return _has_numbers(known[0]) if isinstance(known, list) else known in (int, float)


def _is_exact(array: pa.Array, known: JSONType) -> bool:
    """Tell whether the numbers are all such that neither their text nor a float lost anything."""
    if isinstance(known, dict):
        fields = array.flatten()
        return all(_is_exact(*pair) for pair in zip(fields, known.values(), strict=True))
    if isinstance(known, list):
        return _is_exact(array.flatten(), known[0])
    if known is int or known is float:
        numbers = array.drop_null().to_numpy(zero_copy_only=False)
        return bool((np.abs(numbers) < EXACT_INTEGER_MAX).all())
    return True
