"""The tables of one source of conversations, with our columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ja_instruct.errors import InputError
from ja_instruct.tables.arrow import iterate_tables
from ja_instruct.tables.columns import as_dataset
from ja_instruct.tables.conversation_columns import conversations_of_pairs, conversations_of_turns
from ja_instruct.tables.conversation_sources import CONVERSATIONS, PAIR, PARQUET_SUFFIX, TURN
from ja_instruct.tables.json_lines import (
    BAD_RECORD,
    BAD_RECORD_TYPE,
    bad_record,
    open_lines,
    read_tables,
)
from ja_instruct.tables.json_types import JSONType, to_arrow

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa

    from ja_instruct.tables.conversation_sources import ConversationSource

# Beside the sources' own columns; with its noncharacter it is no file's own.
SOURCE = "\ufdd1source"
PARQUET_ROWS = 2000


def read_file(path: Path, source: ConversationSource) -> Iterator[pa.Table]:
    """Yield the tables of a file, as ``_with_our_columns`` makes them.

    Raises:
        InputError: The file cannot be read, or has not the columns that the source says.
    """
    if path.name.endswith(PARQUET_SUFFIX):
        yield from _with_our_columns(_read_parquet(path), str(path), source)
        return
    with open_lines(path) as file:
        tables = read_tables(file, str(path), declared=_declared(source), tolerant=True)
        yield from _with_our_columns(tables, str(path), source)


def read_hub(source: ConversationSource) -> Iterator[pa.Table]:
    """Yield the tables of a data set of the hub, or of its local folder.

    Raises:
        InputError: It has several splits and none is chosen, or not the columns that the source
            says.
    """
    from datasets import load_dataset

    name = str(source.hub)
    dataset = as_dataset(
        load_dataset(name, name=source.name, split=source.split, revision=source.revision), name
    )
    yield from _with_our_columns(iterate_tables(dataset), name, source)


def _declared(source: ConversationSource) -> dict[str, JSONType]:
    if source.is_pairs:
        return {source.columns[side]: str for side in PAIR}
    turn: dict[str, JSONType] = {source.turn_keys.get(key, key): str for key in TURN}
    return {source.columns.get(CONVERSATIONS, CONVERSATIONS): [turn]}


def _read_parquet(path: Path) -> Iterator[pa.Table]:
    import pyarrow as pa
    from pyarrow import parquet

    row = 1
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                yield from _without_invalid(batch, str(path), row)
                row += batch.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"{path}: cannot be read as Parquet ({error}); make or copy it anew"
        ) from error


def _without_invalid(batch: pa.RecordBatch, name: str, first_row: int) -> Iterator[pa.Table]:
    """Yield the rows, those whose texts are not UTF-8 as bad records: pyarrow reads them all."""
    import pyarrow as pa

    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        if batch.num_rows > 1:
            half = batch.num_rows // 2
            yield from _without_invalid(batch.slice(0, half), name, first_row)
            yield from _without_invalid(batch.slice(half), name, first_row + half)
            return
        bad = bad_record(name, first_row, f"a value that cannot be read ({error})", b"")
        yield pa.table({BAD_RECORD: pa.array([bad], to_arrow(BAD_RECORD_TYPE))})
        return
    yield pa.Table.from_batches([batch]).replace_schema_metadata(None)


def _with_our_columns(
    tables: Iterator[pa.Table], name: str, source: ConversationSource
) -> Iterator[pa.Table]:
    """Yield the tables with ``conversations``, our names, and ``SOURCE``.

    Raises:
        InputError: At the end, when a column that the source names never came, or when no turn
            has a role and a text that this project knows; before, when a column cannot be taken.
    """
    import pyarrow as pa

    seen: dict[str, None] = {}
    turns = _TurnsSeen()
    for table in tables:
        seen.update(dict.fromkeys(table.column_names))
        try:
            ours = _rename(table, source)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        if CONVERSATIONS in ours.column_names:
            turns.add(ours[CONVERSATIONS])
        yield ours.append_column(SOURCE, pa.repeat(name, ours.num_rows))
    seen.pop(BAD_RECORD, None)
    if seen:
        _require_columns(list(seen), name, source)
        turns.require_known(name)


def _rename(table: pa.Table, source: ConversationSource) -> pa.Table:
    import pyarrow as pa

    table = table.drop_columns([key for key in source.drop_columns if key in table.column_names])
    ours = {theirs: ours for ours, theirs in source.columns.items()}
    names = [ours.get(name, name) for name in table.column_names]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(
            f"has a column '{twice[0]}' beside '{source.columns[twice[0]]}', which is to have that "
            f"name; leave it out by 'drop_columns: [{twice[0]}]'"
        )
    table = _without_encodings(table.rename_columns(names))
    if source.is_pairs:
        return _join_pairs(table)
    if CONVERSATIONS not in names:
        return table
    turns = conversations_of_turns(table[CONVERSATIONS], source.turn_keys, source.roles)
    field = pa.field(CONVERSATIONS, turns.type)
    return table.set_column(names.index(CONVERSATIONS), field, turns)


def _without_encodings(table: pa.Table) -> pa.Table:
    """Return texts as plain text, however a Parquet file encodes them."""
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
    import pyarrow as pa

    if not any(side in table.column_names for side in PAIR):
        return table
    if CONVERSATIONS in table.column_names:
        raise InputError(
            f"has a column '{CONVERSATIONS}' beside those for {' and '.join(PAIR)}; leave it out "
            f"by 'drop_columns: [{CONVERSATIONS}]'"
        )
    nothing = pa.chunked_array([pa.nulls(table.num_rows)])
    sides = [table[side] if side in table.column_names else nothing for side in PAIR]
    if BAD_RECORD in table.column_names:
        absent = table[BAD_RECORD].is_valid().combine_chunks()
    else:
        absent = pa.repeat(False, table.num_rows)
    at = min(table.column_names.index(side) for side in PAIR if side in table.column_names)
    joined = conversations_of_pairs(sides[0], sides[1], absent)
    rest = table.drop_columns([side for side in PAIR if side in table.column_names])
    return rest.add_column(at, CONVERSATIONS, joined)


def _require_columns(seen: list[str], name: str, source: ConversationSource) -> None:
    there = f"it has {', '.join(seen)}"
    wanted = [*source.columns.values(), *source.drop_columns]
    missing = [column for column in wanted if column not in seen]
    if missing:
        raise InputError(
            f"{name}: has no column {' and no '.join(map(repr, missing))}; {there}. Correct "
            f"'columns' or 'drop_columns'"
        )
    if not source.is_pairs and source.columns.get(CONVERSATIONS, CONVERSATIONS) not in seen:
        raise InputError(
            f"{name}: has no column '{CONVERSATIONS}'; {there}. Say which it is by 'columns: "
            f"{{conversations: …}}', or by 'columns: {{instruction: …, response: …}}'"
        )


class _TurnsSeen:
    """Whether any turn has a role that the filter knows, and a text."""

    def __init__(self) -> None:
        self._roles: dict[str, None] = {}
        self._keys: list[str] = []
        self._any_text = False

    def add(self, conversations: pa.ChunkedArray) -> None:
        import pyarrow.compute as pc

        turns = pc.list_flatten(conversations)
        if not len(turns):
            return
        self._keys = [field.name for field in turns.type]
        roles = pc.unique(pc.struct_field(turns, "role")).to_pylist()
        self._roles.update(dict.fromkeys(role for role in roles if role is not None))
        texts = pc.struct_field(turns, "content")
        self._any_text = self._any_text or texts.null_count < len(texts)

    def require_known(self, name: str) -> None:
        if self._keys and not (self._roles and self._any_text):
            others = [key for key in self._keys if key not in TURN]
            raise InputError(
                f"{name}: no turn has both 'role' and 'content'; there are "
                f"{', '.join(others) or 'no other keys'}. Say which they are by 'turn_keys: "
                f"{{role: …, content: …}}'"
            )
        if self._roles and not self._roles.keys() & {"user", "assistant"}:
            raise InputError(
                f"{name}: no turn is of the role 'user' or 'assistant'; there are "
                f"{', '.join(list(self._roles)[:8])}. Say which they are by 'roles: {{user: …, "
                f"assistant: …}}'"
            )


class ColumnTypes:
    """The type of every column so far, and where it came from."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[pa.Field, str]] = {}
        self._last: pa.Schema | None = None

    def add(self, schema: pa.Schema, label: str) -> None:
        """Widen the types.

        Raises:
            InputError: A column's type does not go with that of a source before it; both are
                named.
        """
        import pyarrow as pa

        if self._last is not None and schema.equals(self._last):
            return
        self._last = schema
        for field in schema:
            known, origin = self._known.get(field.name, (field, label))
            try:
                (merged,) = pa.unify_schemas(
                    [pa.schema([known]), pa.schema([field])], promote_options="permissive"
                )
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise InputError(
                    f"column '{field.name}' is {known.type} in {origin}, but {field.type} in "
                    f"{label}; rename one by 'columns: {{other_name: {field.name}}}', or leave it "
                    f"out by 'drop_columns: [{field.name}]'"
                ) from error
            self._known[field.name] = (merged, origin)
