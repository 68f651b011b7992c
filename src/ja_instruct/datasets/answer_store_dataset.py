"""``AnswerStoreDataset``: the file to which answers are appended as they are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from kedro.io import AbstractDataset, DatasetError

from ja_instruct.errors import InputError
from ja_instruct.tables.answer_store import AnswerStore


class AnswerStoreDataset(AbstractDataset[AnswerStore, Any]):
    """Loads an ``AnswerStore``, a handle to look answers up with and to append them.

    It is an input of the nodes that answer, and there need be no file yet. It holds nothing open,
    so that it can be sent to a node's own process.

    Examples:
        YAML API:

        ```yaml
        answer_store:
          type: ja_instruct.datasets.AnswerStoreDataset
          filepath: data/07_model_output/demo/answer_store.jsonl
        ```

        Python API:

        >>> dataset = AnswerStoreDataset(filepath=tmp_path / "answer_store.jsonl")
        >>> dataset.load().append("5d41…", {"text": "東京です。"})
        >>> dataset.load().get("5d41…")
        {'text': '東京です。'}
    """

    def __init__(self, *, filepath: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Create the dataset.

        Args:
            filepath: The ``.jsonl`` file; deleting it makes the next run answer everything anew.
            metadata: Ignored by Kedro; kedro-viz reads the layer from it.
        """
        self._filepath = Path(filepath)
        self.metadata = metadata

    def check(self) -> None:
        """Raise ``InputError`` unless answers could be appended; a missing file is as good."""
        if self._filepath.exists() and not self._filepath.is_file():
            raise InputError(
                f"{self._filepath}: no file, so that answers cannot be appended to it; move it "
                f"away, or point the catalog entry at another place"
            )

    def load(self) -> AnswerStore:
        """Read the answers that are there.

        Raises:
            InputError: There is something else in the file's place.
        """
        self.check()
        return AnswerStore(self._filepath)

    def save(self, data: Any) -> NoReturn:
        """Refuse: answers are appended, one by one, and none is replaced."""
        raise DatasetError(f"{self._filepath}: answers are appended to what load() returns")

    def _exists(self) -> bool:
        return self._filepath.is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
