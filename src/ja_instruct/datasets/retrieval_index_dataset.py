"""``RetrievalIndexDataset``: a pool of questions, ready to be searched, as safetensors and JSON."""

from __future__ import annotations

import json

from kedro_datasets._typing import JSONPreview

from ja_instruct.datasets.base import DirectoryDataset
from ja_instruct.errors import InputError
from ja_instruct.retrieval.index import RetrievalIndex
from ja_instruct.retrieval.index_files import (
    DESCRIPTION,
    check_index,
    read_description,
    read_index,
    write_index,
)


class RetrievalIndexDataset(DirectoryDataset[RetrievalIndex, RetrievalIndex]):
    """Loads and saves a ``RetrievalIndex`` as a directory (``ja_instruct.retrieval.index_files``).

    Examples:
        YAML API:

        ```yaml
        retrieval_index:
          type: ja_instruct.datasets.RetrievalIndexDataset
          filepath: data/04_feature/demo/retrieval_index
        ```

        Python API:

        >>> dataset = RetrievalIndexDataset(filepath=tmp_path / "retrieval_index")
        >>> dataset.save(RetrievalIndex("bm25", ("日本の首都は?",)))
        >>> dataset.load().questions
        ('日本の首都は?',)
    """

    MARKER = DESCRIPTION

    def check(self) -> None:
        """Raise ``InputError`` if a file is missing or cannot be read."""
        if not self._filepath.exists():
            raise InputError(f"{self._filepath} does not exist")
        check_index(self._filepath)

    def load(self) -> RetrievalIndex:
        """Read the index; its embeddings are on the CPU.

        Raises:
            InputError: A file cannot be read, or the two files do not belong together.
        """
        return read_index(self._filepath)

    def save(self, data: RetrievalIndex) -> None:
        """Write the index; it appears complete or not at all."""
        write_index(data, self._filepath)

    def preview(self, nrows: int = 5) -> JSONPreview:
        """Return the retriever, the encoder and the first questions, for kedro-viz."""
        content = read_description(self._filepath)
        content["questions"] = content["questions"][:nrows]
        return JSONPreview(json.dumps(content, ensure_ascii=False))
