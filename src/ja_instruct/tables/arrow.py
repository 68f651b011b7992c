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

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

    import pyarrow as pa
    from datasets import Dataset

MEMORY_BYTES_MAX = 64 * 2**20
RELEASED_BYTES = 64 * 2**20
FILE_BUFFER_BYTES = 2**20


#: The files that hold what did not fit into memory, as long as a dataset maps them.
_mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def collect(tables: Iterable[pa.Table], *, memory_bytes_max: int = MEMORY_BYTES_MAX) -> Dataset:
    """Return the rows of all tables, in order, as one ``Dataset``.

    Up to ``memory_bytes_max`` they stay in memory. Beyond it they go to one nameless file in the
    folder where ``datasets`` keeps its files (the environment variable ``HF_DATASETS_CACHE`` moves
    it), which the dataset maps into memory. Being nameless it is gone with the dataset, even after
    a kill.

    Later tables may widen the columns: a new column is null in the rows before it, null becomes
    any type, integers become floats, structs gain fields. A table without rows still gives its
    columns. Schema metadata is dropped: the features are those of the Arrow types.

    The dataset's fingerprint is random, as ``datasets`` would otherwise hash every byte to make
    one.

    Args:
        tables: Read once, one at a time.
        memory_bytes_max: Bytes of Arrow data above which a file is used.

    Raises:
        InputError: Two tables give a column types that do not go together, integers above 2**53
            meet floats, or the file cannot be written; the folder and its setting are named.
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
        if spill is not None:
            spill.write(_promote(table, schema))
            continue
        kept.append(table)
        kept_bytes += table.nbytes
        if kept_bytes > memory_bytes_max:
            spill = _Spill()
            for one in kept:
                spill.write(_promote(one, schema))
            kept.clear()
    if spill is not None:
        kept = spill.read()
    kept = [_promote(table, schema) for table in kept] or [schema.empty_table()]
    return Dataset(pa.concat_tables(kept), fingerprint=generate_random_fingerprint())


def iterate_tables(
    dataset: Dataset, *, columns: Sequence[str] | None = None, rows: int = 2000
) -> Iterator[pa.Table]:
    """Yield the dataset's rows, in order, as plain Arrow tables.

    Consecutive rows are not copied; those picked by ``select``, ``shuffle`` or ``filter`` are,
    table by table.

    Args:
        dataset: Its format and its transforms (``set_format``) are ignored.
        columns: Those wanted, in this order; None for all.
        rows: Of every table but the last.

    Yields:
        Tables of ``rows`` rows without schema metadata; none when there are no rows.
    """
    table = dataset.data.table
    if columns is not None:
        table = table.select(list(columns))
    table = table.replace_schema_metadata(None)
    batches = table.to_batches()
    # starts[i] is the first row of batch i, starts[-1] the number of rows
    starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
    picked = None if dataset._indices is None else dataset._indices.column(0)
    read_bytes = 0
    for first in range(0, len(dataset), rows):
        last = min(first + rows, len(dataset))
        if picked is None:
            piece = _window(table.schema, batches, starts, first, last)
        else:
            indices = picked.slice(first, last - first).to_numpy()
            piece = _gather(table.schema, batches, starts, indices)
        read_bytes += piece.nbytes if _mapped else 0
        yield piece
        if read_bytes > RELEASED_BYTES:
            _release_mapped()
            read_bytes = 0
    _release_mapped()


def _release_mapped() -> None:
    """Give back the memory of what was read of spilled data; read again, it comes from the file.

    The system would take it back only when memory runs short, and counts it as the process's until
    then.
    """
    if hasattr(mmap, "MADV_DONTNEED"):
        for mapped in list(_mapped):
            mapped.madvise(mmap.MADV_DONTNEED)


def _window(
    schema: pa.Schema,
    batches: list[pa.RecordBatch],
    starts: np.ndarray[Any, Any],
    first: int,
    last: int,
) -> pa.Table:
    """Return rows ``first`` to ``last`` (exclusive) without copying them."""
    import pyarrow as pa

    pieces = []
    index = int(np.searchsorted(starts, first, side="right")) - 1
    while first < last:
        end = min(last, int(starts[index + 1]))
        pieces.append(batches[index].slice(first - int(starts[index]), end - first))
        first = end
        index += 1
    return pa.Table.from_batches([piece for piece in pieces if piece.num_rows], schema=schema)


def _gather(
    schema: pa.Schema,
    batches: list[pa.RecordBatch],
    starts: np.ndarray[Any, Any],
    indices: np.ndarray[Any, Any],
) -> pa.Table:
    """Return the rows of these numbers, in their order.

    ``Table.take`` would first join all chunks of a column, which copies the whole data and fails
    beyond 2 GiB of text, so every batch is asked for its own rows.
    """
    import pyarrow as pa

    steps = np.diff(indices.astype(np.int64))
    if (steps == 1).all():
        return _window(schema, batches, starts, int(indices[0]), int(indices[-1]) + 1)
    ascending = bool((steps >= 0).all())
    order = None if ascending else np.argsort(indices, kind="stable")
    wanted = indices if order is None else indices[order]
    owners = np.searchsorted(starts, wanted, side="right") - 1
    pieces = []
    for owner in np.unique(owners):
        local = wanted[owners == owner].astype(np.int64) - starts[owner]
        pieces.append(batches[owner].take(pa.array(local)))
    gathered = pa.Table.from_batches(pieces, schema=schema)
    if order is None:
        return gathered
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return gathered.combine_chunks().take(pa.array(back))


def _widen(schema: pa.Schema, other: pa.Schema) -> pa.Schema:
    """Return a schema that holds both, in the order of appearance."""
    import pyarrow as pa

    other = other.remove_metadata()
    if other.equals(schema):
        return schema
    try:
        return pa.unify_schemas([schema, other], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(
            f"the records disagree on the type of a column ({error}); give every record the same "
            f"type there"
        ) from error


def _promote(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the table with the columns and types of a schema that holds its own."""
    import pyarrow as pa

    table = table.replace_schema_metadata(None)
    if table.schema.equals(schema):
        return table
    columns = []
    for field in schema:
        if field.name in table.column_names:
            column = table.column(field.name)
            if not column.type.equals(field.type):
                try:
                    chunks = [_promote_array(chunk, field.type) for chunk in column.chunks]
                except pa.ArrowInvalid as error:
                    raise InputError(
                        f"column '{field.name}' mixes values that one type cannot hold ({error}); "
                        f"write them all alike, for example as text"
                    ) from error
                column = pa.chunked_array(chunks, type=field.type)
        else:
            column = pa.nulls(table.num_rows, field.type)
        columns.append(column)
    return pa.table(columns, schema=schema)


def _promote_array(array: pa.Array, wide: pa.DataType) -> pa.Array:
    """Return the array as one of a type that holds its own; what needs no change is not copied.

    ``Array.cast`` of pyarrow 25 makes lists of nulls shorter than their offsets say.
    """
    import pyarrow as pa
    from pyarrow import types

    if array.type.equals(wide):
        return array
    if types.is_null(array.type):
        return pa.nulls(len(array), wide)
    if types.is_struct(wide):
        known = {field.name: index for index, field in enumerate(array.type)}
        children = [
            _promote_array(array.field(known[field.name]), field.type)
            if field.name in known
            else pa.nulls(len(array), field.type)
            for field in wide
        ]
        mask = array.is_null() if array.null_count else None
        return pa.StructArray.from_arrays(children, fields=list(wide), mask=mask)
    if types.is_list(wide) and types.is_list(array.type):
        return pa.Array.from_buffers(
            wide,
            len(array),
            array.buffers()[:2],
            null_count=array.null_count,
            offset=array.offset,
            children=[_promote_array(array.values, wide.value_type)],
        )
    return array.cast(wide)


class _Spill:
    """Arrow IPC streams, one behind the other, in a nameless file of the folder of ``datasets``."""

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
        """Add the rows; a schema unlike the last one begins a new stream."""
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
        """Return one table for each schema, mapped from the file."""
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
        with suppress(OSError):  # what its buffer still holds fits as little as what came before
            self._file.close()
        return self._refusal(error)

    def _refusal(self, error: OSError) -> InputError:
        return InputError(
            f"{self._folder}: more data than memory should hold goes there, but it cannot be "
            f"written ({error.strerror or error}); make room, or set the environment variable "
            f"HF_DATASETS_CACHE to a folder on a larger disk"
        )
