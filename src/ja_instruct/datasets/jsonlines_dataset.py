"""``JSONLinesDataset``: Hugging Face datasets as UTF-8 JSON Lines, checked and atomic."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io import AbstractDataset
from kedro_datasets._typing import TablePreview

from ja_instruct.atomic import replacing
from ja_instruct.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datasets import Dataset


def read_records(filepath: Path) -> Iterator[dict[str, Any]]:
    r"""Yield the records of a JSON Lines file.

    Lines are split on ``\n`` alone: Japanese texts hold U+2028, at which ``str.splitlines`` would
    cut a record in two.

    Raises:
        InputError: Names the file and line of the first record that is no JSON object.
    """
    with filepath.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                record = json.loads(raw.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{filepath}:{number}: not UTF-8 ({error.reason} at byte {error.start}); "
                    f"convert the file, for example with 'iconv -t UTF-8'"
                ) from error
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{filepath}:{number}: not JSON ({error.msg} at column {error.colno}); "
                    f"every line must hold one JSON object"
                ) from error
            if not isinstance(record, dict):
                raise InputError(
                    f"{filepath}:{number}: a {type(record).__name__} where a JSON object is "
                    f"expected, such as {{'input': '…', 'output': '…'}}"
                )
            yield record


TEXT_COLUMNS = frozenset({"input", "output", "instruction", "response", "prompt"})


def _as_cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


class JSONLinesDataset(AbstractDataset["Dataset", "Dataset"]):
    """Loads and saves a ``datasets.Dataset`` as JSON Lines: UTF-8, not escaped, one record a line.

    Unlike ``huggingface.JSONDataset`` it names the line that cannot be read, writes ``/`` as
    ``/``, leaves no copy in a cache, and saves atomically, so that an existing file is a
    complete one.

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
            filepath: The ``.jsonl`` file.
            metadata: Ignored by Kedro; kedro-viz reads layer and preview settings from it.
        """
        self._filepath = Path(filepath)
        self.metadata = metadata

    def check(self, columns: tuple[str, ...] = ()) -> None:
        """Read the whole file without keeping it.

        Raises:
            InputError: The file is missing, a line is malformed, or ``columns`` are asked for and
                there is no record, or one lacks a column, holds no text in a column of texts, or
                repeats a ``task_id``.
        """
        if not self._filepath.is_file():
            raise InputError(f"{self._filepath}: no such file")
        count = 0
        task_ids: dict[Any, int] = {}
        for count, record in enumerate(read_records(self._filepath), start=1):
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
                first = task_ids.setdefault(record["task_id"], count)
                if first != count:
                    raise InputError(
                        f"{self._filepath}: records {first} and {count} have the same task_id "
                        f"{record['task_id']!r}; every task needs its own"
                    )
        if columns and not count:
            raise InputError(f"{self._filepath}: holds no records")

    def load(self) -> Dataset:
        """Read every record.

        Raises:
            InputError: A line is malformed (file and line are named), or the records disagree on
                a column's type.
        """
        import pyarrow as pa
        from datasets import Dataset

        records = list(read_records(self._filepath))
        # from_list takes the first record's keys only; a column may first appear later
        columns = list(dict.fromkeys(key for record in records for key in record))
        try:
            return Dataset.from_dict(
                {column: [record.get(column) for record in records] for column in columns}
            )
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(
                f"{self._filepath}: the records disagree on the type of a column ({error})"
            ) from error

    def save(self, data: Dataset) -> None:
        """Write every record, in order, in place of the file."""
        with replacing(self._filepath) as new, new.open("w", encoding="utf-8", newline="\n") as out:
            for record in data:
                out.write(json.dumps(record, ensure_ascii=False) + "\n")

    def preview(self, nrows: int = 5) -> TablePreview:
        """Return the first ``nrows`` records as the table that kedro-viz shows.

        Nested values become JSON: its cells hold text and numbers.
        """
        head = list(islice(read_records(self._filepath), nrows))
        columns = list(dict.fromkeys(key for record in head for key in record))
        rows = [[_as_cell(record.get(column)) for column in columns] for record in head]
        return TablePreview({"index": list(range(len(rows))), "columns": columns, "data": rows})

    def _exists(self) -> bool:
        return self._filepath.is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
