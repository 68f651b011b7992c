"""``AnswerStoreDataset``: the file to which answers are appended as they are generated."""

from __future__ import annotations

from ja_instruct.datasets.base import InputPathDataset
from ja_instruct.errors import InputError
from ja_instruct.tables.answer_store import AnswerStore


class AnswerStoreDataset(InputPathDataset[AnswerStore]):
    """Loads an ``AnswerStore``, a handle that looks answers up and appends them.

    It is an input of the nodes that answer. The ``.jsonl`` file need not exist; without it the next
    run generates every answer again. The handle keeps no file open, so that it can be sent to
    another process.

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

    SAVE_ERROR = "append answers to what load() returns instead"

    def check(self) -> None:
        """Raise ``InputError`` if the path is not a file, or the file holds no answers."""
        self._require_file()
        AnswerStore(self._filepath)

    def _require_file(self) -> None:
        if self._filepath.exists() and not self._filepath.is_file():
            raise InputError(
                f"{self._filepath}: not a file, so answers cannot be appended to it; move it away, "
                f"or set another filepath in the catalog"
            )

    def load(self) -> AnswerStore:
        """Read the stored answers.

        Raises:
            InputError: The path is not a file, or the file holds no answers.
        """
        self._require_file()
        return AnswerStore(self._filepath)
