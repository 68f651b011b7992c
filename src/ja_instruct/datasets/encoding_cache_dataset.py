"""``EncodingCacheDataset``: where the node that encodes questions keeps their encodings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from kedro.io import AbstractDataset, DatasetError

from ja_instruct.retrieval.index_files import EncodingCache


class EncodingCacheDataset(AbstractDataset[EncodingCache, Any]):
    """Loads an ``EncodingCache``, a handle through which the node that encodes reads and writes.

    The directory need not exist.

    Examples:
        YAML API:

        ```yaml
        encoding_cache:
          type: ja_instruct.datasets.EncodingCacheDataset
          filepath: data/04_feature/demo/encoding_cache
        ```

        Python API:

        >>> dataset = EncodingCacheDataset(filepath=tmp_path / "encoding_cache")
        >>> dataset.exists()
        False
    """

    def __init__(self, *, filepath: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Create the dataset.

        Args:
            filepath: The directory; deleting it makes the next run encode all questions.
            metadata: Ignored by Kedro; kedro-viz reads the layer from it.
        """
        self._filepath = Path(filepath)
        self.metadata = metadata

    def check(self) -> None:
        """Accept a missing directory."""

    def load(self) -> EncodingCache:
        """Return the handle."""
        return EncodingCache(self._filepath)

    def save(self, data: Any) -> NoReturn:
        """Refuse: the node writes to what ``load`` returns."""
        raise DatasetError(f"{self._filepath} is written to through what load() returns")

    def _exists(self) -> bool:
        return self._filepath.is_dir()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
