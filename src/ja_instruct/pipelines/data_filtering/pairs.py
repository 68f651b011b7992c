"""Conversations to pairs of instruction and response, and pairs with other texts."""

from __future__ import annotations

import logging
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from ja_instruct.errors import InputError
from ja_instruct.pipelines.data_filtering.batches import FIELDS, as_one_array, map_in_threads
from ja_instruct.tables.json_lines import BAD_RECORD, BAD_RECORD_TYPE
from ja_instruct.tables.json_types import to_arrow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt
    import pyarrow as pa
    from datasets import Dataset

logger = logging.getLogger(__name__)

ROLES = ("user", "assistant")


def make_fields(instructions: Sequence[str], responses: Sequence[str]) -> pa.Table:
    """Return the two columns of texts, in Arrow's type of texts."""
    import pyarrow as pa

    fields = (instructions, responses)
    return pa.table(
        {name: pa.array(texts, pa.string()) for name, texts in zip(FIELDS, fields, strict=True)}
    )


def extract_fields(conversations: pa.ChunkedArray, first_record: int) -> pa.Table:
    """Return the content of the first turn of each role, "" where there is none.

    Args:
        conversations: Lists of turns, each with ``role`` and ``content``.
        first_record: The number of the first one, from 1, for the error.

    Raises:
        InputError: A conversation is no list of turns; the record is named.
    """
    turns = as_one_array(conversations)
    if _holds_turns(turns.type):
        fields = [_take_first(turns, role) for role in ROLES]
    else:
        read = [
            [_read_first(one, role, number) for role in ROLES]
            for number, one in enumerate(turns.to_pylist(), start=first_record)
        ]
        fields = [[pair[field] for pair in read] for field in (0, 1)]
    return make_fields(*fields)


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
    """Return the content of the first turn of ``role`` in each list of turns."""
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


def _read_first(turns: Any, role: str, number: int) -> str:
    """Do the same for one conversation of any other type."""
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


def _refusal(number: int, value: Any) -> InputError:
    return InputError(
        f"'raw_conversations', record {number}: 'conversations' must be a list of turns, "
        f"each a mapping with the texts 'role' and 'content', but holds {value!r:.100}"
    )


def set_bad_records_aside(source: Dataset, count_max: int) -> tuple[Dataset, Dataset]:
    """Return the records that could be read, without gaps, and what is known of the others.

    Args:
        source: Has a column ``bad_record`` if some could not be read: null for the others, else
            ``source``, ``line``, ``error`` and ``text``.
        count_max: How many may be bad.

    Raises:
        InputError: More are bad; the first are named.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from ja_instruct.tables.arrow import collect, iterate_tables

    fields = list(to_arrow(BAD_RECORD_TYPE))
    bad = pa.schema(fields).empty_table()
    if BAD_RECORD in source.column_names:
        told = [table.column(0) for table in iterate_tables(source, columns=[BAD_RECORD])]
        records = pa.concat_tables([pa.table({BAD_RECORD: column}) for column in told])
        is_bad = pc.is_valid(records.column(0)).to_numpy()
        flat = records.filter(is_bad).flatten()
        names = [field.name for field in fields]
        bad = flat.select([f"{BAD_RECORD}.{name}" for name in names]).rename_columns(names)
        source = source.remove_columns(BAD_RECORD).select(np.flatnonzero(~is_bad))
    if len(bad) > count_max:
        raise InputError(describe_bad_records(bad.to_pylist(), count_max))
    if len(bad):
        logger.warning(
            "%d records could not be read; 'quarantined_records' holds them with file and line",
            len(bad),
        )
    if source._indices is not None:
        source = flatten_indices(source)
    return source, collect([bad])


def describe_bad_records(bad: list[dict[str, Any]], count_max: int) -> str:
    """Return the message on more bad records than allowed."""
    shown = [f"  - {one['source']}:{one['line']}: {one['error']}" for one in bad[:5]]
    more = f"\n  … and {len(bad) - 5} more" if len(bad) > 5 else ""
    return (
        f"'raw_conversations': {len(bad)} records cannot be read, more than "
        f"data_filtering.bad_records_max = {count_max}:\n" + "\n".join(shown) + more + "\nRepair "
        "or remove them, or raise data_filtering.bad_records_max to leave them out"
    )


def flatten_indices(data: Dataset) -> Dataset:
    """Return the rows that ``select`` picked as rows of a table of their own."""
    from datasets import Dataset, DatasetInfo
    from datasets.fingerprint import generate_random_fingerprint

    from ja_instruct.tables.arrow import collect, iterate_tables

    none = data.data.table.schema.empty_table()
    table = collect(chain([none], iterate_tables(data))).data.table
    # Dataset.cast would show a progress bar and leave a file in the cache
    return Dataset(
        table.replace_schema_metadata(None),
        info=DatasetInfo(features=data.features),
        fingerprint=generate_random_fingerprint(),
    )


def replace_columns(data: Dataset, columns: Dataset, *, first: bool) -> Dataset:
    """Return ``data`` with ``columns`` before or after its own, in place of those so named.

    Nothing is copied. Neither has rows picked by ``select``.
    """
    import pyarrow as pa
    from datasets import Dataset, DatasetInfo, Features
    from datasets.fingerprint import generate_random_fingerprint

    others = [name for name in data.column_names if name not in columns.column_names]
    names = [*columns.column_names, *others] if first else [*others, *columns.column_names]
    sources = [columns if name in columns.column_names else data for name in names]
    features = {name: source.features[name] for name, source in zip(names, sources, strict=True)}
    table = pa.table(
        {name: source.data.table.column(name) for name, source in zip(names, sources, strict=True)}
    )
    return Dataset(
        table,
        info=DatasetInfo(features=Features(features)),
        fingerprint=generate_random_fingerprint(),
    )


def select_rows(
    tables: Iterable[pa.Table], rows: npt.NDArray[np.int64], columns: pa.Table
) -> Iterator[pa.Table]:
    """Yield those ``rows`` (ascending) of consecutive tables, with ``columns`` at their end.

    Args:
        tables: Their rows are counted on from table to table.
        rows: Shape (n,).
        columns: n rows; take the place of the tables' columns of the same names.
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
