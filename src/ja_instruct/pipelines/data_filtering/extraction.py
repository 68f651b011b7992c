"""Records from conversations in Arrow arrays."""

from __future__ import annotations

import logging
from itertools import chain, count
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ja_instruct.errors import InputError, prefix_errors
from ja_instruct.pipelines.data_filtering.batches import (
    HISTORY,
    ROWS_PER_BATCH,
    as_one_array,
    map_in_threads,
)
from ja_instruct.pipelines.data_filtering.exchanges import SPEAKERS, Record, Turn, read_records
from ja_instruct.pipelines.data_filtering.pairs import (
    flatten_indices,
    join_columns,
    make_fields,
    make_history,
    replace_columns,
)
from ja_instruct.pipelines.data_filtering.violations import Violation, Violations
from ja_instruct.tables.conversation_sources import CONVERSATIONS, TURN
from ja_instruct.tables.turns import decode_turns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt
    import pyarrow as pa
    from datasets import Dataset

    from ja_instruct.pipelines.data_filtering.parameters import DataFilteringParameters

logger = logging.getLogger(__name__)

#: The position of a record in its conversation.
EXCHANGE = "exchange"


def extract_records(
    source: Dataset, parameters: DataFilteringParameters
) -> tuple[Dataset, Violations]:
    """Return the records of the source's conversations, and what the order of turns violates.

    The columns are ``instruction`` and ``response``; ``history`` if it is kept; ``exchange``, the
    position of the record in its conversation, if there may be several; and those of the source,
    of which ``history`` and ``exchange`` are renamed.

    Raises:
        InputError: Names the first record that is not a list of turns.
    """
    from ja_instruct.tables.arrow import collect, iterate_tables

    source = _rename_reserved(_decode_conversations(source), parameters)
    rows = [np.empty(0, np.int64)]
    faults: list[Violation] = []

    def extract() -> Iterator[pa.Table]:
        yield _make_columns([], parameters)
        tables = iterate_tables(source, columns=[CONVERSATIONS], rows=ROWS_PER_BATCH)
        made = 0
        for extracted in map_in_threads(
            lambda numbered: _extract(numbered[1].column(0), numbered[0], parameters),
            zip(count(1, ROWS_PER_BATCH), tables, strict=False),
        ):
            rows.append(extracted.rows)
            faults.extend(one._replace(row=one.row + made) for one in extracted.faults)
            made += len(extracted.columns)
            yield extracted.columns

    records = collect(extract())
    if parameters.multi_turn == "split":
        source = flatten_indices(source.select(np.concatenate(rows)))
    return replace_columns(source, records), Violations.from_list(faults)


def _rename_reserved(source: Dataset, parameters: DataFilteringParameters) -> Dataset:
    """Rename the source's columns that would be taken for ours."""
    reserved = [HISTORY, *([EXCHANGE] if parameters.multi_turn == "split" else [])]
    for name in reserved:
        if name in source.column_names:
            renamed = f"source_{name}"
            logger.warning(
                "raw_conversations: the column '%s' is kept as '%s', as '%s' is the name of a "
                "column that data_filtering makes",
                name,
                renamed,
                name,
            )
            source = source.rename_column(name, renamed)
    return source


def _decode_conversations(source: Dataset) -> Dataset:
    """Return the source with conversations that ``decode_turns`` decodes as lists of turns."""
    from ja_instruct.tables.arrow import collect, iterate_tables

    def decode() -> Iterator[pa.Table]:
        first = 1
        for table in iterate_tables(source, columns=[CONVERSATIONS], rows=ROWS_PER_BATCH):
            with prefix_errors("'raw_conversations'"):
                turns = decode_turns(table.column(0), first_record=first)
            yield table.set_column(0, CONVERSATIONS, turns)
            first += len(table)

    none = source.data.table.slice(0, 0).column(CONVERSATIONS)
    if decode_turns(none).type.equals(none.type):
        return source
    decoded = collect(decode())
    return join_columns(dict.fromkeys(source.column_names, source) | {CONVERSATIONS: decoded})


class _Extracted(NamedTuple):
    """The records of consecutive conversations.

    Attributes:
        columns: Ours, as in ``extract_records``.
        rows: The row of the source that each record comes from.
        faults: What the turns of records violate, with the rows of ``columns``.
    """

    columns: pa.Table
    rows: npt.NDArray[np.int64]
    faults: list[Violation]


def _extract(
    conversations: pa.ChunkedArray, first_record: int, parameters: DataFilteringParameters
) -> _Extracted:
    """Return the records of conversations; ``read_records`` describes them.

    Raises:
        InputError: Names the record, counted from ``first_record``, that is not a list of turns.
    """
    recipe = (parameters.multi_turn, parameters.system_turns, parameters.assistant_first)
    turns = as_one_array(conversations)
    if recipe == ("first", "drop", "pair") and _holds_turns(turns.type):
        columns = make_fields(*(_take_first(turns, role) for role in SPEAKERS))
        return _Extracted(columns, np.arange(len(turns)) + first_record - 1, [])
    records: list[Record] = []
    rows: list[int] = []
    for row, talk in enumerate(_iterate_talks(turns, first_record)):
        found = read_records(talk, parameters)
        records += found
        rows += [row + first_record - 1] * len(found)
    faults = [
        Violation(row, record.fault[0], "pair", record.fault[1])
        for row, record in enumerate(records)
        if record.fault is not None
    ]
    return _Extracted(_make_columns(records, parameters), np.array(rows, np.int64), faults)


def _make_columns(records: Sequence[Record], parameters: DataFilteringParameters) -> pa.Table:
    import pyarrow as pa

    table = make_fields([one.instruction for one in records], [one.response for one in records])
    if parameters.keeps_history:
        turns = list(chain.from_iterable(record.history for record in records))
        offsets = np.cumsum([0, *(len(record.history) for record in records)])
        history = make_history(offsets, [role for role, _ in turns], [text for _, text in turns])
        table = table.append_column(HISTORY, history)
    if parameters.multi_turn == "split":
        table = table.append_column(
            EXCHANGE, pa.array([one.exchange for one in records], pa.int64())
        )
    return table


def _iterate_talks(turns: pa.Array, first_record: int) -> Iterator[list[Turn]]:
    """Yield role and content of the turns of each conversation."""
    import pyarrow.compute as pc

    if not _holds_turns(turns.type):
        for number, talk in enumerate(turns.to_pylist(), start=first_record):
            yield _read_turns(talk, number)
        return
    flat = turns.flatten()
    keys = (pc.struct_field(flat, key).to_pylist() for key in TURN)
    pairs = list(zip(flat.is_null().to_pylist(), *keys, strict=True))
    start = 0
    for length in turns.value_lengths().to_pylist():
        end = start + (length or 0)
        yield [(role, content) for is_null, role, content in pairs[start:end] if not is_null]
        start = end


def _holds_turns(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    turn = kind.value_type
    return pa.types.is_struct(turn) and all(
        turn.get_field_index(key) >= 0
        and (pa.types.is_string(of := turn.field(key).type) or pa.types.is_large_string(of))
        for key in TURN
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


def _read_turns(turns: object, number: int) -> list[Turn]:
    """Return role and content of the turns of a conversation in Python objects."""
    if not isinstance(turns, list | None):
        raise _refusal(number, turns)
    read = []
    for turn in filter(lambda turn: turn is not None, turns or []):
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str | None):
            raise _refusal(number, turn)
        read.append((turn.get("role"), turn.get("content")))
    return read


def _refusal(number: int, value: object) -> InputError:
    return InputError(
        f"'raw_conversations', record {number}: 'conversations' must be a list of turns, "
        f"each a mapping with the texts 'role' and 'content', but holds {value!r:.100}"
    )
