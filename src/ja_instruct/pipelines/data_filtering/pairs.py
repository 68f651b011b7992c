"""Pairs of instruction and response: read from conversations, and with columns replaced."""

from __future__ import annotations

import logging
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from ja_instruct.errors import InputError
from ja_instruct.pipelines.data_filtering.batches import (
    FIELDS,
    ROWS_PER_BATCH,
    as_one_array,
    map_in_threads,
)
from ja_instruct.tables.conversations import decode_turns, prefix_errors
from ja_instruct.tables.json_lines import BAD_RECORD, BAD_RECORD_TYPE
from ja_instruct.tables.json_text import holds_json
from ja_instruct.tables.json_types import to_arrow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt
    import pyarrow as pa
    from datasets import Dataset, Features

logger = logging.getLogger(__name__)

ROLES = ("user", "assistant")


def make_fields(instructions: Sequence[str], responses: Sequence[str]) -> pa.Table:
    """Return the columns ``instruction`` and ``response`` as Arrow strings."""
    import pyarrow as pa

    fields = zip(FIELDS, (instructions, responses), strict=True)
    return pa.table({name: pa.array(texts, pa.string()) for name, texts in fields})


def extract_fields(conversations: pa.ChunkedArray, first_record: int) -> pa.Table:
    """Return the content of the first turn of each role, or "" without such a turn.

    Raises:
        InputError: A conversation is not a list of turns with ``role`` and ``content``; the error
            names the record, counted from ``first_record``.
    """
    turns = as_one_array(conversations)
    if _holds_turns(turns.type):
        return make_fields(*(_take_first(turns, role) for role in ROLES))
    read = [
        [_read_first(one, role, number) for role in ROLES]
        for number, one in enumerate(turns.to_pylist(), start=first_record)
    ]
    return make_fields([pair[0] for pair in read], [pair[1] for pair in read])


def _holds_turns(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    turn = kind.value_type
    return pa.types.is_struct(turn) and all(
        turn.get_field_index(key) >= 0
        and (pa.types.is_string(of := turn.field(key).type) or pa.types.is_large_string(of))
        for key in ("role", "content")
    )


def _take_first(turns: pa.ListArray, role: str) -> pa.StringArray:
    """Return the content of the first turn of ``role`` in each list."""
    import pyarrow as pa
    import pyarrow.compute as pc

    flat = turns.flatten()
    lengths = pc.fill_null(pc.list_value_length(turns), 0).to_numpy()
    ends = np.cumsum(lengths)
    of_role = pc.fill_null(pc.equal(pc.struct_field(flat, "role"), role), False)
    places = np.flatnonzero(of_role.to_numpy(zero_copy_only=False))
    rows, firsts = np.unique(np.searchsorted(ends, places, side="right"), return_index=True)
    wanted = np.full(len(turns), -1, np.int64)
    wanted[rows] = places[firsts]
    indices = pa.array(wanted, mask=wanted < 0)
    content = pc.struct_field(flat, "content").take(indices)
    return pc.fill_null(content.cast(pa.string()), "")


def _read_first(turns: object, role: str, number: int) -> str:
    """Return the same for one conversation in Python objects."""
    if not isinstance(turns, list | None):
        raise _refusal(number, turns)
    for turn in turns or []:
        if turn is None:
            continue
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str | None):
            raise _refusal(number, turn)
        if turn.get("role") == role:
            return turn.get("content") or ""
    return ""


def _refusal(number: int, value: object) -> InputError:
    return InputError(
        f"'raw_conversations', record {number}: 'conversations' must be a list of turns, "
        f"each a mapping with the texts 'role' and 'content', but holds {value!r:.100}"
    )


def decode_conversations(source: Dataset) -> Dataset:
    """Return the source with conversations that are JSON text as lists of turns.

    ``datasets`` keeps them as JSON text if their turns have different keys.

    Raises:
        InputError: Names the record that is not a list of turns with texts.
    """
    from ja_instruct.tables.arrow import collect, iterate_tables

    name = "conversations"

    def decode() -> Iterator[pa.Table]:
        first = 1
        for table in iterate_tables(source, columns=[name], rows=ROWS_PER_BATCH):
            with prefix_errors("'raw_conversations'"):
                turns = decode_turns(table.column(name), first_record=first)
            yield table.set_column(0, name, turns)
            first += len(table)

    if not holds_json(source.data.schema.field(name).type):
        return source
    decoded = collect(decode())
    sources = {column: decoded if column == name else source for column in source.column_names}
    return _join_columns(sources)


def set_bad_records_aside(source: Dataset, count_max: int) -> tuple[Dataset, Dataset]:
    """Separate the readable records from the descriptions of the unreadable ones.

    With unreadable records, ``source`` has a column ``bad_record``: null for the others, else
    ``source``, ``line``, ``error`` and ``text``.

    Raises:
        InputError: More than ``count_max`` records are unreadable; the error lists the first ones.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from ja_instruct.tables.arrow import collect, iterate_tables

    schema = pa.schema(list(to_arrow(BAD_RECORD_TYPE)))
    bad = schema.empty_table()
    if BAD_RECORD in source.column_names:
        records = pa.concat_tables(iterate_tables(source, columns=[BAD_RECORD]))
        is_bad = pc.is_valid(records.column(0)).to_numpy()
        flat = records.filter(is_bad).flatten()
        bad = flat.select([f"{BAD_RECORD}.{name}" for name in schema.names])
        bad = bad.rename_columns(schema.names)
        source = source.remove_columns(BAD_RECORD).select(np.flatnonzero(~is_bad))
    if len(bad) > count_max:
        raise InputError(describe_bad_records(bad.to_pylist(), count_max))
    if len(bad):
        logger.warning(
            "%d records could not be read; 'quarantined_records' lists them with file and line",
            len(bad),
        )
    if source._indices is not None:
        source = flatten_indices(source)
    return source, collect([bad])


def describe_bad_records(bad: list[dict[str, Any]], count_max: int) -> str:
    """Return the error message for more unreadable records than allowed."""
    shown = [f"  - {one['source']}:{one['line']}: {one['error']}" for one in bad[:5]]
    more = f"\n  … and {len(bad) - 5} more" if len(bad) > 5 else ""
    return (
        f"'raw_conversations': {len(bad)} records cannot be read, more than "
        f"data_filtering.bad_records_max = {count_max}:\n" + "\n".join(shown) + more + "\nRepair "
        "or remove them, or raise data_filtering.bad_records_max to leave them out"
    )


def flatten_indices(data: Dataset) -> Dataset:
    """Return the selected rows as a table of their own, without an indices mapping."""
    from ja_instruct.tables.arrow import collect, iterate_tables

    none = data.data.table.slice(0, 0)
    table = collect(chain([none], iterate_tables(data))).data.table
    return _make_dataset(table.replace_schema_metadata(None), data.features)


def replace_columns(data: Dataset, columns: Dataset) -> Dataset:
    """Return ``columns``, then those columns of ``data`` that have other names, without a copy.

    Both datasets must be without an indices mapping (see ``flatten_indices``).
    """
    sources = dict.fromkeys(columns.column_names, columns)
    sources |= {name: data for name in data.column_names if name not in sources}
    return _join_columns(sources)


def _join_columns(sources: dict[str, Dataset]) -> Dataset:
    """Return the columns of these names, each from its own dataset, without a copy."""
    import pyarrow as pa
    from datasets import Features

    features = {name: source.features[name] for name, source in sources.items()}
    table = pa.table({name: source.data.table.column(name) for name, source in sources.items()})
    return _make_dataset(table, Features(features))


def _make_dataset(table: pa.Table, features: Features) -> Dataset:
    """Wrap a table; ``Dataset.cast`` would leave a file in the cache and show a progress bar."""
    from datasets import Dataset, DatasetInfo
    from datasets.fingerprint import generate_random_fingerprint

    info = DatasetInfo(features=features)
    return Dataset(table, info=info, fingerprint=generate_random_fingerprint())


def select_rows(
    tables: Iterable[pa.Table], rows: npt.NDArray[np.int64], columns: pa.Table
) -> Iterator[pa.Table]:
    """Yield the selected rows of consecutive tables, with ``columns`` appended.

    ``rows``, shape (n,), ascend and are numbered throughout the tables. ``columns`` has n rows and
    replaces the tables' columns of the same names.
    """
    import pyarrow as pa

    def locate() -> Iterator[tuple[pa.Table, npt.NDArray[np.int64], pa.Table]]:
        start = 0
        for table in tables:
            first, last = np.searchsorted(rows, [start, start + len(table)]).tolist()
            yield table, rows[first:last] - start, columns.slice(first, last - first)
            start += len(table)

    def pick(located: tuple[pa.Table, npt.NDArray[np.int64], pa.Table]) -> pa.Table:
        table, places, added = located
        others = [name for name in table.column_names if name not in added.column_names]
        picked = table.select(others).take(pa.array(places))
        for name in added.column_names:
            picked = picked.append_column(added.schema.field(name), added.column(name))
        return picked

    return map_in_threads(pick, locate())
