"""``ConversationsDataset``: conversations from several sources with any columns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ja_instruct.datasets.base import InputDataset
from ja_instruct.datasets.preview import make_preview
from ja_instruct.errors import InputError
from ja_instruct.models.hub import cached_commit, check_hub_dataset, load_hub_dataset
from ja_instruct.tables.arrow import collect
from ja_instruct.tables.conversation_sources import find_places
from ja_instruct.tables.conversations import SOURCE, read_places
from ja_instruct.tables.json_records import BAD_RECORD
from kedro_freshness.fingerprints import fingerprint_path, fingerprint_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset
    from kedro_datasets._typing import TablePreview

BAD_RECORDS_LISTED = 5


class ConversationsDataset(InputDataset["Dataset"]):
    """Loads conversations from data sets of the hub and files as one ``datasets.Dataset``.

    The column ``conversations`` holds lists of turns with ``role`` (``user``, ``assistant``, …) and
    ``content``; other keys of turns and other columns are kept. The records are in the order of the
    sources, of their patterns and of the file names. With several files or data sets, a column
    ``source`` holds the path or the hub's name, unless the sources have a column of that name.

    Files are JSON Lines (``.jsonl``, ``.ndjson``, ``.json-lines``, each also with ``.gz``) and
    Parquet. A record that cannot be read becomes a row with only the column ``bad_record``:
    ``source``, ``line``, ``error`` and ``text``. Data that does not fit into memory goes to the
    cache folder of ``datasets`` (``HF_DATASETS_CACHE``).

    Examples:
        YAML API:

        ```yaml
        raw_conversations:
          type: ja_instruct.datasets.ConversationsDataset
          sources:
            - hub: llm-jp/magpie-sft-v1.0
              split: train
            - files: data/01_raw/mine/*.jsonl.gz
              columns: {conversations: messages} # our name: the source's
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
            sources: Fields of ``ConversationSource`` for each; validated by ``check`` and ``load``.
            metadata: Ignored by Kedro; kedro-viz reads layer and preview settings from it.
        """
        self._sources = sources
        self.metadata = metadata

    def check_records(self, columns: Sequence[str] = (), bad_records_max: int = 0) -> None:
        """Read every file without keeping it, and check that the hub has its data sets.

        Raises:
            InputError: A mistake in the configuration, a source that is not available, columns of
                conflicting types, or more than ``bad_records_max`` bad records, of which the first
                five are listed.
        """
        places = find_places(self._sources)
        for place in places:
            if isinstance(place.path, str):
                check_hub_dataset(place.path, **place.source.hub_arguments)
        count = 0
        first: list[dict[str, Any]] = []
        for table in read_places([place for place in places if isinstance(place.path, Path)]):
            if BAD_RECORD in table.column_names:
                bad = table[BAD_RECORD].drop_null()
                count += len(bad)
                first += bad.slice(0, BAD_RECORDS_LISTED - len(first)).to_pylist()
        if count > bad_records_max:
            listed = "; ".join(f"{bad['source']}:{bad['line']}: {bad['error']}" for bad in first)
            more = f"; and {count - len(first)} more" if count > len(first) else ""
            raise InputError(
                f"{count} bad record(s), {bad_records_max} allowed: {listed}{more}. Repair or "
                f"remove them, or raise data_filtering.bad_records_max"
            )

    def fingerprint(self) -> str | None:
        """Return the SHA-256 of the configuration, the files and the data sets' commits.

        None if the configuration has a mistake.
        """
        try:
            places = find_places(self._sources)
        except InputError:  # 'check_records' reports it
            return None
        found = [
            fingerprint_path(place.path)
            if isinstance(place.path, Path)
            else cached_commit(place.path, place.source.revision, "dataset")
            for place in places
        ]
        return fingerprint_value([self._sources, found])

    def load(self) -> Dataset:
        """Read every source, including all bad records.

        Raises:
            InputError: A mistake in the configuration, a file that cannot be read, or columns of
                conflicting types.
        """
        places = find_places(self._sources)
        dataset = collect(read_places(places, load_hub_dataset))
        if SOURCE not in dataset.column_names:
            return dataset
        if len(places) == 1 or "source" in dataset.column_names:
            return dataset.remove_columns([SOURCE])
        return dataset.rename_column(SOURCE, "source")

    def preview(self, nrows: int = 5) -> TablePreview:
        """Return the first records of the files, not of the hub, as the table of kedro-viz."""
        places = [place for place in find_places(self._sources) if isinstance(place.path, Path)]
        head = next(read_places(places), None)
        records = [] if head is None else head.drop_columns(SOURCE).to_pylist()
        return make_preview(records[:nrows])

    def _exists(self) -> bool:
        try:
            return bool(find_places(self._sources))
        except InputError:
            return False
