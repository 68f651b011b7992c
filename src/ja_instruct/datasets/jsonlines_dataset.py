"""``JSONLinesDataset``: Hugging Face datasets as UTF-8 JSON Lines, checked and atomic."""

from __future__ import annotations

import gzip
import json
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from ja_instruct.datasets.base import PathDataset
from ja_instruct.datasets.preview import make_preview
from ja_instruct.errors import InputError
from ja_instruct.tables.arrow import collect, iterate_tables
from ja_instruct.tables.atomic import replacing
from ja_instruct.tables.json_lines import (
    GZIP_SUFFIX,
    TEXT_COLUMNS,
    open_lines,
    read_records,
    read_tables,
)
from ja_instruct.tables.json_writer import write_tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from datasets import Dataset
    from kedro_datasets._typing import TablePreview


def _is_suspicious(table: pa.Table, column: str) -> bool:
    """Return whether a record may lack the column, or hold something else than text in it."""
    from pyarrow import types

    if column not in table.column_names or table[column].null_count:
        return True
    return column in TEXT_COLUMNS and not types.is_string(table[column].type)


def _find_problem(record: dict[str, Any], columns: Sequence[str]) -> str:
    missing = [column for column in columns if column not in record]
    if missing:
        return f" lacks {', '.join(missing)}; it has {', '.join(record) or 'no fields'}"
    wrong = [key for key in columns if key in TEXT_COLUMNS and not isinstance(record[key], str)]
    if wrong:
        shown = json.dumps(record[wrong[0]], ensure_ascii=False)[:40]
        return f": {', '.join(wrong)} must be text, not {shown}"
    return ""


class JSONLinesDataset(PathDataset["Dataset", "Dataset"]):
    """Loads and saves a ``datasets.Dataset`` as JSON Lines: UTF-8, not escaped, one record a line.

    Unlike ``huggingface.JSONDataset`` it names a line that cannot be read, writes ``/`` as ``/``,
    leaves no copy in a cache, and saves atomically, so an existing file is complete. A file of any
    size takes little memory; ``.jsonl.gz`` is compressed.

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

    def check_records(self, columns: Sequence[str] = (), bad_records_max: int = 0) -> None:
        """Read the whole file without keeping it; every bad record is an error.

        Raises:
            InputError: The file is missing, a line is malformed, or the records disagree on a
                column's type. With ``columns``: there is no record, or one lacks a column, has
                something else than text in a column of texts, or repeats a ``task_id``.
        """
        if not self._filepath.is_file():
            raise InputError(f"{self._filepath}: no such file")
        count = 0
        suspicious = "task_id" in columns  # files of tasks and answers are small
        with open_lines(self._filepath) as file:
            for table in read_tables(file, str(self._filepath)):
                count += table.num_rows
                suspicious = suspicious or any(_is_suspicious(table, name) for name in columns)
        if suspicious:
            self._check_one_by_one(columns)
        if columns and not count:
            raise InputError(
                f"{self._filepath}: holds no records; it needs some with {' and '.join(columns)}"
            )

    def _check_one_by_one(self, columns: Sequence[str]) -> None:
        """Check the records one by one: in Arrow a missing column equals null."""
        first_with: dict[Any, int] = {}
        with open_lines(self._filepath) as file:
            for count, record in enumerate(read_records(file, str(self._filepath)), start=1):
                problem = _find_problem(record, columns)
                if problem:
                    raise InputError(f"{self._filepath}: record {count}{problem}")
                task_id = record.get("task_id")
                key = json.dumps(task_id) if isinstance(task_id, list | dict) else task_id
                first = first_with.setdefault(key, count)
                if "task_id" in columns and first != count:
                    raise InputError(
                        f"{self._filepath}: records {first} and {count} have the same task_id "
                        f"{task_id!r}; every task needs its own"
                    )

    def load(self) -> Dataset:
        """Read every record; a large file is mapped into memory.

        Raises:
            InputError: Names the file and line that is malformed, or where a column's type changes.
        """
        with open_lines(self._filepath) as file:
            return collect(read_tables(file, str(self._filepath)))

    def save(self, data: Dataset) -> None:
        """Write every record, in order, and replace the file.

        Raises:
            InputError: JSON cannot represent a column's type.
        """
        with replacing(self._filepath) as new, new.open("wb") as raw:
            if self._filepath.suffix != GZIP_SUFFIX:
                write_tables(iterate_tables(data), raw)
                return
            # without name and time, so that equal records make equal files
            with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
                write_tables(iterate_tables(data), cast("BinaryIO", file))

    def preview(self, nrows: int = 5) -> TablePreview:
        """Return the first ``nrows`` records as the table that kedro-viz shows."""
        with open_lines(self._filepath) as file:
            return make_preview(list(islice(read_records(file, str(self._filepath)), nrows)))
