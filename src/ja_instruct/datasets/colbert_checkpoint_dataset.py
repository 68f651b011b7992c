"""``ColbertCheckpointDataset``: a ColBERT checkpoint of the hub or on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ja_instruct.datasets.base import InputDataset
from ja_instruct.errors import InputError
from ja_instruct.models.hub import cached_commit, check_repository, download_model, is_cached
from ja_instruct.retrieval.colbert_checkpoint import check_checkpoint
from ja_instruct.retrieval.index import ColbertCheckpoint
from kedro_freshness.fingerprints import fingerprint_path


class ColbertCheckpointDataset(InputDataset[ColbertCheckpoint]):
    """Loads a handle on a ColBERT checkpoint.

    Download and hashing wait until the handle's ``directory`` or ``sha256`` is read, which BM25
    never does.

    Examples:
        YAML API, with a hub repository and with a directory:

        ```yaml
        retriever_checkpoint:
          type: ja_instruct.datasets.ColbertCheckpointDataset
          repo_id: bclavie/JaColBERTv2
          revision: main
        ```

        ```yaml
        retriever_checkpoint:
          type: ja_instruct.datasets.ColbertCheckpointDataset
          filepath: data/06_models/my-colbert
        ```

        Python API:

        >>> dataset = ColbertCheckpointDataset(filepath=tmp_path / "my-colbert")
        >>> dataset.exists()
        False
    """

    def __init__(
        self,
        *,
        filepath: str | Path | None = None,
        repo_id: str | None = None,
        revision: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Create the dataset.

        Args:
            filepath: The checkpoint's directory; either this or ``repo_id``.
            repo_id: The hub repository; it is downloaded to the Hugging Face cache.
            revision: Branch, tag or commit of the repository; None is its default branch.
            metadata: Ignored by Kedro; kedro-viz reads the layer from it.

        Raises:
            InputError: Both or neither of ``filepath`` and ``repo_id`` are given.
        """
        if (filepath is None) == (repo_id is None):
            raise InputError(
                "a ColBERT checkpoint is either a directory ('filepath') or a hub repository "
                "('repo_id'); give one of the two in the catalog"
            )
        self._filepath = None if filepath is None else Path(filepath)
        self._repo_id = repo_id or ""
        self._revision = revision
        self.metadata = metadata

    def check(self) -> None:
        """Raise ``InputError`` when the checkpoint is not available; download nothing."""
        if self._filepath is None:
            check_repository(self._repo_id, self._revision, repo_type="model")
        else:
            check_checkpoint(self._filepath)

    def fingerprint(self) -> str | None:
        """Return the directory's content or the downloaded commit; None if there is neither."""
        if self._filepath is not None:
            return fingerprint_path(self._filepath) if self._filepath.is_dir() else None
        commit = cached_commit(self._repo_id, self._revision, "model")
        return commit and f"{self._repo_id}@{commit}"

    def load(self) -> ColbertCheckpoint:
        """Return a handle; its ``directory`` raises ``InputError`` when it is not available."""
        name = f"{self._repo_id}@{self._revision}" if self._revision else self._repo_id
        return ColbertCheckpoint(self._fetch, str(self._filepath or name))

    def _fetch(self) -> Path:
        directory = self._filepath or download_model(self._repo_id, self._revision)
        check_checkpoint(directory)
        return directory

    def _exists(self) -> bool:
        if self._filepath is not None:
            return (self._filepath / "artifact.metadata").is_file()
        return is_cached(self._repo_id, self._revision, "config.json")
