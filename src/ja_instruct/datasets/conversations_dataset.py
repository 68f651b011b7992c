"""``ConversationsDataset``: conversations from several sources, whatever their columns."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io import AbstractDataset
from kedro_datasets._typing import TablePreview

from ja_instruct.errors import InputError
from ja_instruct.models.hub import check_repository
from ja_instruct.tables.arrow import collect
from ja_instruct.tables.conversation_sources import ConversationSource, parse_sources
from ja_instruct.tables.conversations import (
    SOURCE,
    ColumnTypes,
    read_file,
    read_hub,
)
from ja_instruct.tables.json_lines import BAD_RECORD

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from datasets import Dataset

BAD_RECORDS_TOLD = 5


class ConversationsDataset(AbstractDataset[None, "Dataset"]):
    """Loads conversations from hub data sets and files as one ``datasets.Dataset``.

    Its column ``conversations`` holds lists of turns with ``role`` (``user``, ``assistant``, …)
    and ``content``; other keys of turns and other columns are kept. The records come in the order
    of the sources, of their patterns and of the files' names. From several files or data sets
    there is a column ``source``, the path or the hub's name, unless they bring their own.

    Files are JSON Lines (``.jsonl``, ``.ndjson``, ``.json-lines``, each also with ``.gz``) and
    Parquet. A record that cannot be read is a row that holds nothing but the column
    ``bad_record``: ``source``, ``line``, ``error`` and ``text``. More data than memory should hold
    lie in the folder where ``datasets`` keeps its files (``HF_DATASETS_CACHE``).

    Examples:
        YAML API:

        ```yaml
        raw_conversations:
          type: ja_instruct.datasets.ConversationsDataset
          sources:
            - hub: llm-jp/magpie-sft-v1.0
              split: train
            - files: data/01_raw/mine/*.jsonl.gz
              columns: {conversations: messages} # our name: theirs
              turn_keys: {role: from, content: value}
              roles: {user: human, assistant: gpt}
              drop_columns: [meta]
            - files: data/01_raw/qa.parquet
              columns: {instruction: question, response: answer} # become two turns
        ```

        Python API:

        >>> path = tmp_path / "mine.jsonl"
        >>> line = '{"messages": [{"from": "human", "value": "日本の首都は?"}]}'
        >>> _ = path.write_text(line, "utf-8")
        >>> source = {
        ...     "files": str(path),
        ...     "columns": {"conversations": "messages"},
        ...     "turn_keys": {"role": "from", "content": "value"},
        ...     "roles": {"user": "human"},
        ... }
        >>> ConversationsDataset(sources=[source]).load()[0]
        {'conversations': [{'role': 'user', 'content': '日本の首都は?'}]}
    """

    def __init__(
        self, *, sources: list[dict[str, Any]], metadata: dict[str, Any] | None = None
    ) -> None:
        """Create the dataset.

        Args:
            sources: Each of the form of ``ConversationSource``; looked at when it is checked or
                loaded.
            metadata: Ignored by Kedro; kedro-viz reads layer and preview settings from it.
        """
        self._sources = sources
        self.metadata = metadata

    def check(self, bad_records_max: int = 0) -> None:
        """Read every file without keeping it, and ask the hub for its data sets.

        Raises:
            InputError: A mistake in the configuration, a source that cannot be had, columns of
                clashing types, or more than ``bad_records_max`` bad records; the first five are
                told.
        """
        places = self._find_places()
        for _, place, source in places:
            if isinstance(place, str) and not Path(place).is_dir():
                check_repository(place, source.revision, repo_type="dataset")
        count = 0
        first: list[dict[str, Any]] = []
        for table in _read([place for place in places if isinstance(place[1], Path)]):
            if BAD_RECORD in table.column_names:
                bad = table[BAD_RECORD].drop_null()
                count += len(bad)
                first += bad.slice(0, BAD_RECORDS_TOLD - len(first)).to_pylist()
        if count > bad_records_max:
            told = "; ".join(f"{bad['source']}:{bad['line']}: {bad['error']}" for bad in first)
            more = f"; and {count - len(first)} more" if count > len(first) else ""
            raise InputError(
                f"{count} bad record(s), {bad_records_max} allowed: {told}{more}. Repair or remove "
                f"them, or raise data_filtering.bad_records_max"
            )

    def load(self) -> Dataset:
        """Read every source; bad records are kept as such, however many there are.

        Raises:
            InputError: A mistake in the configuration, a file that cannot be read at all, or
                columns of clashing types.
        """
        places = self._find_places()
        dataset = collect(_read(places))
        if len(places) == 1 or "source" in dataset.column_names:
            return dataset.remove_columns([SOURCE]) if SOURCE in dataset.column_names else dataset
        return dataset.rename_column(SOURCE, "source") if len(dataset) else dataset

    def preview(self, nrows: int = 5) -> TablePreview:
        """Return the files' first records as the table that kedro-viz shows; not the hub's.

        Nested values become text: its cells hold text and numbers.
        """
        places = [place for place in self._find_places() if isinstance(place[1], Path)]
        head = [row for table in islice(_read(places), 1) for row in table.to_pylist()[:nrows]]
        columns = [column for column in (head[0] if head else ()) if column != SOURCE]
        rows = [[str(row[column]) for column in columns] for row in head]
        return TablePreview({"index": list(range(len(rows))), "columns": columns, "data": rows})

    def save(self, data: None) -> None:
        """Refuse: sources are read only."""
        raise InputError("conversations are read from their sources, not written to them")

    def _find_places(self) -> list[tuple[int, str | Path, ConversationSource]]:
        """Return each hub data set and file with the number of its source, from 1."""
        places: list[tuple[int, str | Path, ConversationSource]] = []
        problems = []
        for number, source in enumerate(parse_sources(self._sources), start=1):
            if source.hub is not None:
                places.append((number, source.hub, source))
                continue
            try:
                places += [(number, file, source) for file in source.find_files()]
            except InputError as error:
                problems.append(f"source {number}: {error}")
        if problems:
            raise InputError("; ".join(problems))
        return places

    def _exists(self) -> bool:
        try:
            return bool(self._find_places())
        except InputError:
            return False

    def _describe(self) -> dict[str, Any]:
        return {"sources": self._sources}


def _read(places: list[tuple[int, str | Path, ConversationSource]]) -> Iterator[pa.Table]:
    types = ColumnTypes()
    for number, place, source in places:
        label = f"source {number}: {place}"
        tables = read_file(place, source) if isinstance(place, Path) else read_hub(source)
        try:
            for table in tables:
                types.add(table.schema, label)
                yield table
        except InputError as error:
            if str(error).startswith("source "):
                raise
            raise InputError(f"source {number}: {error}") from error
