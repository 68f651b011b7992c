"""Arrow tables to and from ``datasets.Dataset``, in bounded memory."""

from __future__ import annotations

import mmap
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ja_instruct.errors import InputError
from ja_instruct.tables.json_text import is_json, to_json_text
from ja_instruct.tables.nested import rebuild

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import Table

MEMORY_BYTES_MAX = 64 * 2**20
RELEASED_BYTES = 64 * 2**20
FILE_BUFFER_BYTES = 2**20

#: The memory maps of the spilled data of all datasets in use.
_mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def collect(tables: Iterable[pa.Table], *, memory_bytes_max: int = MEMORY_BYTES_MAX) -> Dataset:
    """Return the rows of all tables, in order, as one ``Dataset``.

    Up to ``memory_bytes_max`` the rows stay in memory. Beyond it they go to one nameless file in
    the cache folder of ``datasets`` (set by the environment variable ``HF_DATASETS_CACHE``), which
    the dataset maps into memory. The system deletes the nameless file with the dataset, even if the
    process is killed.

    Later tables may widen the columns: a new column is null in earlier rows, null becomes any type,
    integers become floats, structs gain fields; values that no such type holds become JSON text
    (``ja_instruct.tables.json_text``). A table without rows still adds its columns. Schema metadata
    is dropped, so the features follow from the Arrow types.

    The dataset's fingerprint is random, because ``datasets`` would hash every byte to compute one.

    Args:
        tables: Read once, one at a time.
        memory_bytes_max: Bytes of Arrow data above which a file is used.

    Raises:
        InputError: The file cannot be written; the folder and its setting are named.
    """
    import pyarrow as pa
    from datasets import Dataset
    from datasets.fingerprint import generate_random_fingerprint

    schema = pa.schema([])
    kept: list[pa.Table] = []
    kept_bytes = 0
    spill: _Spill | None = None
    for table in tables:
        schema = _widen(schema, table.schema)
        kept.append(table)
        kept_bytes += table.nbytes
        if spill is None and kept_bytes > memory_bytes_max:
            spill = _Spill()
        if spill is not None:
            kept, schema = _promote_all(kept, schema)
            for one in kept:
                spill.write(one)
            kept = []
    if spill is not None:
        kept = spill.read()
    kept, schema = _promote_all(kept, schema)
    kept = kept or [_promote(pa.table({}), schema)]
    return Dataset(pa.concat_tables(kept), fingerprint=generate_random_fingerprint())


def iterate_tables(
    dataset: Dataset, *, columns: Sequence[str] | None = None, rows: int = 2000
) -> Iterator[pa.Table]:
    """Yield the dataset's rows, in order, as plain Arrow tables.

    Consecutive rows are not copied; rows picked by ``select``, ``shuffle`` or ``filter`` are
    copied table by table.

    Args:
        dataset: Its format and its transforms (``set_format``) are ignored.
        columns: Names of the columns to return, in this order; None for all.
        rows: Rows of every table but the last.

    Yields:
        Tables of ``rows`` rows without schema metadata; none if the dataset has no rows.
    """
    table = dataset.data if columns is None else dataset.data.select(list(columns))
    table = table.replace_schema_metadata(None)
    picked = None if dataset._indices is None else dataset._indices.column(0)
    read_bytes = 0
    for first in range(0, len(dataset), rows):
        count = min(rows, len(dataset) - first)
        if picked is None:
            piece = table.fast_slice(first, count)
        else:
            piece = _gather(table, picked.slice(first, count).to_numpy().astype(np.int64))
        read_bytes += piece.nbytes if _mapped else 0
        yield piece
        if read_bytes > RELEASED_BYTES:
            _release_mapped()
            read_bytes = 0
    _release_mapped()


def _release_mapped() -> None:
    """Release the memory of spilled data that was read; another read takes it from the file.

    Otherwise the system counts it as the process's memory until memory runs short.
    """
    if hasattr(mmap, "MADV_DONTNEED"):
        for mapped in list(_mapped):
            mapped.madvise(mmap.MADV_DONTNEED)


def _gather(table: Table, indices: np.ndarray[Any, Any]) -> pa.Table:
    """Return the rows of these numbers, in their order.

    ``pyarrow.Table.take`` first joins all chunks of a column, which copies the whole data and fails
    beyond 2 GiB of text, and ``Table.fast_gather`` of ``datasets`` makes one batch a row; so each
    batch takes its own rows.
    """
    import pyarrow as pa

    steps = np.diff(indices)
    if (steps == 1).all():
        return table.fast_slice(int(indices[0]), len(indices))
    order = None if (steps >= 0).all() else np.argsort(indices, kind="stable")
    wanted = indices if order is None else indices[order]
    # offsets[i] is the first row of batch i, the last offset is the number of rows
    batches, offsets = table._batches, table._offsets
    owners = np.searchsorted(offsets, wanted, side="right") - 1
    pieces = [
        batches[owner].take(pa.array(wanted[owners == owner] - offsets[owner]))
        for owner in np.unique(owners)
    ]
    gathered = pa.Table.from_batches(pieces, schema=table.schema)
    if order is None:
        return gathered
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return gathered.combine_chunks().take(pa.array(back))


def _widen(schema: pa.Schema, other: pa.Schema) -> pa.Schema:
    """Return a schema that includes both, in the order of appearance."""
    import pyarrow as pa

    other = other.remove_metadata()
    if other.equals(schema):
        return schema
    types = dict(zip(schema.names, schema.types, strict=True))
    for field in other:
        known = types.get(field.name, field.type)
        types[field.name] = _join_types(known, field.type)
    return pa.schema(types)


def _join_types(known: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Return the type that holds values of both: JSON text where they have nothing in common."""
    import pyarrow as pa
    from pyarrow import types

    schemas = [pa.schema({"": known}), pa.schema({"": other})]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        pass
    if types.is_list(known) and types.is_list(other):
        return pa.list_(_join_types(known.value_type, other.value_type))
    if types.is_struct(known) and types.is_struct(other):
        return pa.struct(list(_widen(pa.schema(list(known)), pa.schema(list(other)))))
    return pa.json_()


class _LossyColumnError(ValueError):
    """A column that has integers above 2**53 and floats; the message is its name."""


def _promote_all(tables: list[pa.Table], schema: pa.Schema) -> tuple[list[pa.Table], pa.Schema]:
    """Return the tables as a schema that includes theirs, and that schema.

    A column becomes JSON text if its values would lose digits.
    """
    import pyarrow as pa

    try:
        return [_promote(table, schema) for table in tables], schema
    except _LossyColumnError as lossy:
        name = str(lossy)
        text = pa.field(name, pa.json_())
        return _promote_all(tables, schema.set(schema.get_field_index(name), text))


def _promote(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the table with the columns and types of a schema that includes its own.

    Raises:
        _LossyColumnError: Integers cannot become floats without losing digits.
    """
    import pyarrow as pa

    table = table.replace_schema_metadata(None)
    if table.schema.equals(schema):
        return table
    columns = []
    for field in schema:
        is_there = field.name in table.column_names
        chunks = table[field.name].chunks if is_there else [pa.nulls(table.num_rows)]
        try:
            chunks = [rebuild(chunk, field.type, _promote_leaf) for chunk in chunks]
        except pa.ArrowInvalid as error:
            raise _LossyColumnError(field.name) from error
        columns.append(pa.chunked_array(chunks, type=field.type))
    return pa.table(columns, schema=schema)


def _promote_leaf(array: pa.Array, wide: pa.DataType) -> pa.Array:
    return to_json_text(array) if is_json(wide) else array.cast(wide)


class _Spill:
    """Arrow IPC streams in one nameless file in the cache folder of ``datasets``."""

    def __init__(self) -> None:
        from datasets import config

        self._folder = Path(config.HF_DATASETS_CACHE)
        self._starts: list[int] = []
        self._stream: pa.RecordBatchStreamWriter | None = None
        self._schema: pa.Schema | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(  # noqa: SIM115 - it outlives this method
                dir=self._folder, buffering=FILE_BUFFER_BYTES
            )
        except OSError as error:
            raise self._refusal(error) from error

    def write(self, table: pa.Table) -> None:
        """Append the rows; a changed schema starts a new stream."""
        import pyarrow as pa

        try:
            if self._stream is None or not table.schema.equals(self._schema):
                self._end_stream()
                self._starts.append(self._file.tell())
                self._stream = pa.ipc.new_stream(pa.PythonFile(self._file, "w"), table.schema)
                self._schema = table.schema
            self._stream.write_table(table)
        except OSError as error:
            raise self._give_up(error) from error

    def read(self) -> list[pa.Table]:
        """Return one table for each stream, mapped from the file."""
        import pyarrow as pa

        try:
            self._end_stream()
            self._file.flush()
            mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise self._give_up(error) from error
        self._file.close()  # the mapping keeps the data
        _mapped.add(mapped)
        data = pa.py_buffer(mapped)
        return [pa.ipc.open_stream(data.slice(start)).read_all() for start in self._starts]

    def _end_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _give_up(self, error: OSError) -> InputError:
        with suppress(OSError):  # closing writes the rest of the buffer
            self._file.close()
        return self._refusal(error)

    def _refusal(self, error: OSError) -> InputError:
        return InputError(
            f"{self._folder}: data that does not fit into memory goes there, but it cannot be "
            f"written ({error.strerror or error}); make room, or set the environment variable "
            f"HF_DATASETS_CACHE to a folder on a larger disk"
        )
