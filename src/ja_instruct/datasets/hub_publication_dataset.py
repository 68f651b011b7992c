"""``HubPublicationDataset``: a model that is published on the Hugging Face hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ja_instruct.datasets.base import PathDataset
from ja_instruct.datasets.json_dataset import JSONDataset
from ja_instruct.errors import InputError
from ja_instruct.models.publication import check_login
from ja_instruct.tables.atomic import replacing
from ja_instruct.tables.json_text import as_json

if TYPE_CHECKING:
    from pathlib import Path

    from ja_instruct.models.publication import Publication


class HubPublicationDataset(PathDataset["Publication", dict[str, Any]]):
    """Saves a model to a repository of the hub, and a record of that to a file; loads the record.

    The dataset exists if the record names this repository; the hub is not queried for its current
    content. The record holds repository, commit, address and checksums.

    Examples:
        YAML API:

        ```yaml
        published_adapter:
          type: ja_instruct.datasets.HubPublicationDataset
          repo_id: owner/gemma-2-27b-ja-lora
          filepath: data/08_reporting/base/published_adapter.json
        ```

        Python API:

        >>> dataset = HubPublicationDataset(filepath=tmp_path / "published_adapter.json")
        >>> dataset.exists()
        False
        >>> dataset.check_output()
        Traceback (most recent call last):
        ja_instruct.errors.InputError: 'repo_id' of this catalog entry ... is not set; ...
    """

    def __init__(
        self,
        *,
        filepath: str | Path,
        repo_id: str | None = None,
        private: bool = True,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Create the dataset.

        Args:
            filepath: The record, a JSON file.
            repo_id: ``owner/name`` on the hub; None refuses to publish.
            private: Whether a new repository is private; an existing one stays as it is.
            metadata: Ignored by Kedro; kedro-viz reads the layer from it.
        """
        super().__init__(filepath=filepath, metadata=metadata)
        self._repo_id = repo_id
        self._private = private

    def check(self) -> None:
        """Raise ``InputError`` unless the model was published to this repository."""
        if not self._filepath.is_file() or self._read().get("repo_id") != self._repo_id:
            raise InputError(
                f"{self._filepath}: no record of a publication to '{self._repo_id}'; publish "
                f"with 'kedro run --pipeline=publishing' (and the same --env)"
            )

    def check_output(self) -> None:
        """Raise ``InputError`` if no repository is named or the user may not write to it."""
        super().check_output()
        check_login(self._repo_id)

    def load(self) -> dict[str, Any]:
        """Return the record."""
        self.check()
        return self._read()

    def save(self, data: Publication) -> None:
        """Upload, then write the record."""
        self.check_output()
        record = data.upload(str(self._repo_id), private=self._private)
        with replacing(self._filepath) as new:
            new.write_text(as_json(record), "utf-8")

    def _read(self) -> dict[str, Any]:
        record: dict[str, Any] = JSONDataset(filepath=self._filepath).load()
        return record

    def _exists(self) -> bool:
        try:
            self.check()
        except InputError:
            return False
        return True
