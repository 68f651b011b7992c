"""Conversations, lists of turns with role and content, from the columns of any source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ja_instruct.errors import InputError, prefix_errors
from ja_instruct.tables.arrow import iterate_tables
from ja_instruct.tables.columns import as_dataset
from ja_instruct.tables.conversation_sources import CONVERSATIONS, PAIR, PARQUET_SUFFIX, TURN
from ja_instruct.tables.json_lines import open_lines, read_tables
from ja_instruct.tables.json_records import BAD_RECORD, BAD_RECORD_TYPE, bad_record
from ja_instruct.tables.json_types import JSONType, to_arrow
from ja_instruct.tables.turns import SeenTurns, convert_turns, strict_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa

    from ja_instruct.tables.conversation_sources import ConversationSource, Place

# The column with the name of the source; no file uses a noncharacter in a name.
SOURCE = "\ufdd1source"
PARQUET_ROWS = 2000


def read_places(
    places: Sequence[Place], load_hub: Callable[..., Any] | None = None
) -> Iterator[pa.Table]:
    """Yield the tables of all places, with ``conversations``, our column names, and ``SOURCE``.

    Args:
        places: Files and data sets of the hub.
        load_hub: Called in place of ``datasets.load_dataset``.

    Raises:
        InputError: Names the source, from 1, that cannot be read, has several splits and names
            none, lacks a column or has one that cannot be converted, or has no turn with a known
            role and a text.
    """
    for place in places:
        yield from _read_place(place, load_hub)


def _read_place(place: Place, load_hub: Callable[..., Any] | None) -> Iterator[pa.Table]:
    path, source, name = place.path, place.source, str(place.path)
    with prefix_errors(f"source {place.number}"):
        if isinstance(path, str):
            from datasets import load_dataset

            splits = (load_hub or load_dataset)(path, **source.hub_arguments)
            yield from _convert(iterate_tables(as_dataset(splits, name)), name, source)
        elif path.name.endswith(PARQUET_SUFFIX):
            yield from _convert(_read_parquet(path), name, source)
        else:
            with open_lines(path) as file:
                declared = _declared_types(source)
                tables = read_tables(
                    file, name, declared=declared, strict=strict_keys(declared), tolerant=True
                )
                yield from _convert(tables, name, source)


def _declared_types(source: ConversationSource) -> dict[str, JSONType]:
    if source.is_pairs:
        return {source.columns[field]: str for field in PAIR}
    turn: dict[str, JSONType] = {source.turn_keys.get(key, key): str for key in TURN}
    return {source.columns.get(CONVERSATIONS, CONVERSATIONS): [turn]}


def _read_parquet(path: Path) -> Iterator[pa.Table]:
    import pyarrow as pa
    from pyarrow import parquet

    row = 1
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                yield from _separate_invalid(batch, str(path), row)
                row += batch.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"{path}: cannot be read as Parquet ({error}); re-create or re-copy it"
        ) from error


def _separate_invalid(batch: pa.RecordBatch, name: str, first_row: int) -> Iterator[pa.Table]:
    """Yield the rows; pyarrow reads texts that are not UTF-8, so those become bad records."""
    import pyarrow as pa

    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        if batch.num_rows > 1:
            half = batch.num_rows // 2
            yield from _separate_invalid(batch.slice(0, half), name, first_row)
            yield from _separate_invalid(batch.slice(half), name, first_row + half)
            return
        bad = bad_record(name, first_row, f"a value that cannot be read ({error})", b"")
        yield pa.table({BAD_RECORD: pa.array([bad], to_arrow(BAD_RECORD_TYPE))})
        return
    yield pa.Table.from_batches([batch]).replace_schema_metadata(None)


def _convert(
    tables: Iterator[pa.Table], name: str, source: ConversationSource
) -> Iterator[pa.Table]:
    """Yield the tables of one place as ``read_places`` describes them.

    Missing columns and unknown roles raise at the end, because any table may bring them.
    """
    import pyarrow as pa

    seen: dict[str, None] = {}
    turns = SeenTurns()
    for table in tables:
        seen.update(dict.fromkeys(table.column_names))
        with prefix_errors(name):
            ours = _rename_columns(table, source)
        if CONVERSATIONS in ours.column_names:
            turns.add(ours[CONVERSATIONS])
        yield ours.append_column(SOURCE, pa.repeat(name, ours.num_rows))
    seen.pop(BAD_RECORD, None)
    with prefix_errors(name):
        if seen:
            _require_columns(list(seen), source)
            turns.require_known()


def _rename_columns(table: pa.Table, source: ConversationSource) -> pa.Table:
    table = table.drop_columns([key for key in source.drop_columns if key in table.column_names])
    our_names = {theirs: ours for ours, theirs in source.columns.items()}
    names = [our_names.get(name, name) for name in table.column_names]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise InputError(
            f"has a column '{repeated}' beside '{source.columns[repeated]}', which 'columns' "
            f"renames to it; leave it out by 'drop_columns: [{repeated}]'"
        )
    table = _decode_texts(table.rename_columns(names))
    if source.is_pairs:
        return _join_pairs(table)
    if CONVERSATIONS not in names:
        return table
    turns = convert_turns(table[CONVERSATIONS], source.turn_keys, source.roles)
    return table.set_column(names.index(CONVERSATIONS), CONVERSATIONS, turns)


def _decode_texts(table: pa.Table) -> pa.Table:
    """Return dictionary-encoded and large texts of a Parquet file as plain ones."""
    import pyarrow as pa
    from pyarrow import types

    for index, field in enumerate(table.schema):
        plain = field.type.value_type if types.is_dictionary(field.type) else field.type
        if types.is_large_string(plain) or types.is_string_view(plain):
            plain = pa.string()
        if not plain.equals(field.type):
            table = table.set_column(index, field.name, table.column(index).cast(plain))
    return table


def _join_pairs(table: pa.Table) -> pa.Table:
    """Return the table with a user's and an assistant's turn in place of the two columns."""
    import pyarrow as pa
    from pyarrow import types

    there = [field for field in PAIR if field in table.column_names]
    if not there:
        return table
    if CONVERSATIONS in table.column_names:
        raise InputError(
            f"has a column '{CONVERSATIONS}' beside those for {' and '.join(PAIR)}; leave it out "
            f"by 'drop_columns: [{CONVERSATIONS}]'"
        )
    count = table.num_rows
    texts = []
    for field in PAIR:
        column = table[field] if field in there else pa.chunked_array([pa.nulls(count)])
        if not (types.is_null(column.type) or types.is_string(column.type)):
            raise InputError(f"its column for '{field}' holds {column.type}, not text")
        texts.append(column.cast(pa.string()).combine_chunks())
    # rows 0, count, 1, count + 1, … of the instructions followed by the responses
    contents = pa.concat_arrays(texts).take(pa.array(np.arange(2 * count).reshape(2, -1).T.ravel()))
    roles = pa.array(["user", "assistant"] * count, pa.string())
    bad = table[BAD_RECORD].is_valid() if BAD_RECORD in table.column_names else None
    conversations = pa.ListArray.from_arrays(
        pa.array(np.arange(0, 2 * count + 1, 2, dtype=np.int32)),
        pa.StructArray.from_arrays([roles, contents], names=list(TURN)),
        mask=None if bad is None else bad.combine_chunks(),
    )
    position = min(map(table.column_names.index, there))
    return table.drop_columns(there).add_column(position, CONVERSATIONS, conversations)


def _require_columns(seen: list[str], source: ConversationSource) -> None:
    there = f"it has {', '.join(seen)}"
    expected = [*source.columns.values(), *source.drop_columns]
    missing = [column for column in expected if column not in seen]
    if missing:
        raise InputError(
            f"has no column {' and no '.join(map(repr, missing))}; {there}. Correct 'columns' or "
            f"'drop_columns'"
        )
    if not source.is_pairs and source.columns.get(CONVERSATIONS, CONVERSATIONS) not in seen:
        raise InputError(
            f"has no column '{CONVERSATIONS}'; {there}. Name the column by 'columns: "
            f"{{conversations: …}}', or by 'columns: {{instruction: …, response: …}}'"
        )
