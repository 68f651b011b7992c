"""``EncodingCacheDataset``: where the node that encodes questions keeps their encodings."""

from __future__ import annotations

from ja_instruct.datasets.base import InputPathDataset
from ja_instruct.errors import InputError
from ja_instruct.retrieval.index_files import EncodingCache


class EncodingCacheDataset(InputPathDataset[EncodingCache]):
    """Loads an ``EncodingCache``, a handle through which the node that encodes reads and writes.

    The directory need not exist; deleting it makes the next run encode all questions.

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

    SAVE_ERROR = "the node that encodes writes to what load() returns instead"

    def check(self) -> None:
        """Accept a missing directory; raise ``InputError`` for a file in its place."""
        if self._filepath.exists() and not self._filepath.is_dir():
            raise InputError(
                f"{self._filepath}: not a directory, so encodings cannot be kept in it; remove it, "
                f"or set another filepath in the catalog"
            )

    def load(self) -> EncodingCache:
        """Return the handle."""
        return EncodingCache(self._filepath)

    def _exists(self) -> bool:
        return self._filepath.is_dir()
