"""``JSONLinesDataset``: Hugging Face datasets as UTF-8 JSON Lines, checked and atomic."""

from __future__ import annotations

import gzip
import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from kedro.io import AbstractDataset
from kedro_datasets._typing import TablePreview

from ja_instruct.errors import InputError
from ja_instruct.tables.arrow import collect, iterate_tables
from ja_instruct.tables.atomic import discard_unfinished, replacing
from ja_instruct.tables.json_lines import GZIP_SUFFIX, open_lines, read_records, read_tables
from ja_instruct.tables.json_writer import write_tables

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset


TEXT_COLUMNS = frozenset({"input", "output", "instruction", "response", "prompt"})


def _as_cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _is_suspicious(table: pa.Table, column: str) -> bool:
    """Tell whether the column may be missing from a record, or hold what is no text."""
    from pyarrow import types

    if column not in table.column_names or table[column].null_count:
        return True
    return column in TEXT_COLUMNS and not types.is_string(table[column].type)


def _repeat(task_ids: list[pa.ChunkedArray]) -> bool:
    """Tell whether two ids may be equal."""
    import pyarrow as pa

    if len({ids.type for ids in task_ids}) > 1 or any(ids.type.num_fields for ids in task_ids):
        return True
    ids = pa.chunked_array([chunk for ids in task_ids for chunk in ids.chunks] or [[]])
    return len(ids.unique()) != len(ids)


class JSONLinesDataset(AbstractDataset["Dataset", "Dataset"]):
    """Loads and saves a ``datasets.Dataset`` as JSON Lines: UTF-8, not escaped, one record a line.

    Unlike ``huggingface.JSONDataset`` it names the line that cannot be read, writes ``/`` as
    ``/``, leaves no copy in a cache, and saves atomically, so that an existing file is a
    complete one. A file of any size takes little memory; ``.jsonl.gz`` is compressed.

    Examples:
        YAML API:

        ```yaml
        qa_pairs:
          type: ja_instruct.datasets.JSONLinesDataset
          filepath: data/01_raw/demo/qa_pairs.jsonl
        ```

        Python API:

        >>> from datasets import Dataset
        >>> dataset = JSONLinesDataset(filepath=tmp_path / "pairs.jsonl")
        >>> dataset.save(Dataset.from_list([{"input": "日本の首都は?", "output": "東京です。"}]))
        >>> dataset.load()[0]["output"]
        '東京です。'
    """

    def __init__(self, *, filepath: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Create the dataset.

        Args:
            filepath: The ``.jsonl`` or ``.jsonl.gz`` file.
            metadata: Ignored by Kedro; kedro-viz reads layer and preview settings from it.
        """
        self._filepath = Path(filepath)
        self.metadata = metadata

    def check(self, columns: tuple[str, ...] = ()) -> None:
        """Read the whole file without keeping it.

        Raises:
            InputError: The file is missing, a line is malformed, the records disagree on a
                column's type, or ``columns`` are asked for and there is no record, or one lacks a
                column, holds no text in a column of texts, or repeats a ``task_id``.
        """
        if not self._filepath.is_file():
            raise InputError(f"{self._filepath}: no such file")
        count = 0
        task_ids = []
        suspicious = False
        with open_lines(self._filepath) as file:
            for table in read_tables(file, str(self._filepath)):
                count += table.num_rows
                suspicious = suspicious or any(_is_suspicious(table, name) for name in columns)
                if "task_id" in columns and not suspicious:
                    task_ids.append(table["task_id"])
        if suspicious or _repeat(task_ids):
            self._check_records(columns)
        if columns and not count:
            raise InputError(f"{self._filepath}: holds no records")

    def _check_records(self, columns: tuple[str, ...]) -> None:
        """Look at the records one by one: Arrow knows no column that is missing from some."""
        task_ids: dict[Any, int] = {}
        with open_lines(self._filepath) as file:
            for count, record in enumerate(read_records(file, str(self._filepath)), start=1):
                missing = [column for column in columns if column not in record]
                if missing:
                    raise InputError(
                        f"{self._filepath}: record {count} lacks {', '.join(missing)}; it has "
                        f"{', '.join(record) or 'no fields'}"
                    )
                wrong = [
                    column
                    for column in columns
                    if column in TEXT_COLUMNS and not isinstance(record[column], str)
                ]
                if wrong:
                    raise InputError(
                        f"{self._filepath}: record {count}: {', '.join(wrong)} must be text, not "
                        f"{json.dumps(record[wrong[0]], ensure_ascii=False)[:40]}"
                    )
                if "task_id" in columns:
                    task_id = record["task_id"]
                    first = task_ids.setdefault(_as_cell(task_id), count)
                    if first != count:
                        raise InputError(
                            f"{self._filepath}: records {first} and {count} have the same task_id "
                            f"{task_id!r}; every task needs its own"
                        )

    def load(self) -> Dataset:
        """Read every record; a large file's lie in a file mapped into memory.

        Raises:
            InputError: A line is malformed, or the records disagree on a column's type; file and
                line are named.
        """
        with open_lines(self._filepath) as file:
            return collect(read_tables(file, str(self._filepath)))

    def save(self, data: Dataset) -> None:
        """Write every record, in order, in place of the file.

        Raises:
            InputError: A column's type has no form in JSON.
        """
        with replacing(self._filepath) as new, new.open("wb") as raw:
            if self._filepath.suffix != GZIP_SUFFIX:
                write_tables(iterate_tables(data), raw)
                return
            # without name and time equal records make equal files
            with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
                write_tables(iterate_tables(data), cast("BinaryIO", file))

    def preview(self, nrows: int = 5) -> TablePreview:
        """Return the first ``nrows`` records as the table that kedro-viz shows.

        Nested values become JSON: its cells hold text and numbers.
        """
        with open_lines(self._filepath) as file:
            head = list(islice(read_records(file, str(self._filepath)), nrows))
        columns = list(dict.fromkeys(key for record in head for key in record))
        rows = [[_as_cell(record.get(column)) for column in columns] for record in head]
        return TablePreview({"index": list(range(len(rows))), "columns": columns, "data": rows})

    def discard_unfinished(self) -> None:
        """Tidy up after a process that was killed while it saved."""
        discard_unfinished(self._filepath)

    def _exists(self) -> bool:
        return self._filepath.is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
