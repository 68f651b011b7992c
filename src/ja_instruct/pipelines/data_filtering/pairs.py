"""Pairs of instruction and response: read from conversations, and with columns replaced."""

from __future__ import annotations

import logging
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from ja_instruct.errors import InputError
from ja_instruct.pipelines.data_filtering.batches import (
    FIELDS,
    map_in_threads,
)
from ja_instruct.tables.conversation_sources import TURN
from ja_instruct.tables.json_records import BAD_RECORD, BAD_RECORD_TYPE
from ja_instruct.tables.json_types import to_arrow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt
    import pyarrow as pa
    from datasets import Dataset, Features

logger = logging.getLogger(__name__)


def make_fields(instructions: Sequence[str], responses: Sequence[str]) -> pa.Table:
    """Return the columns ``instruction`` and ``response`` as Arrow strings."""
    import pyarrow as pa

    fields = zip(FIELDS, (instructions, responses), strict=True)
    return pa.table({name: pa.array(texts, pa.string()) for name, texts in fields})


def make_history(
    offsets: npt.NDArray[np.int64], roles: Sequence[str] | npt.NDArray[Any], contents: Sequence[str]
) -> pa.ListArray:
    """Return lists of turns as Arrow arrays; see ``History``."""
    import pyarrow as pa

    texts = [pa.array(values, pa.string()) for values in (roles, contents)]
    turns = pa.StructArray.from_arrays(texts, names=list(TURN))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), turns)


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
    return join_columns(sources)


def join_columns(sources: dict[str, Dataset]) -> Dataset:
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
