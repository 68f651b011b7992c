"""``ModelArtifactDataset``: what the model directories that this project writes have in common."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset

from ja_instruct.models.directory import (
    CARD_FILE,
    PROVENANCE_FILE,
    ModelArtifact,
    ModelDirectory,
    write_provenance,
)
from ja_instruct.tables.atomic import discard_unfinished, replacing


class ModelArtifactDataset(AbstractDataset[ModelArtifact, ModelDirectory]):
    """Saves weights, tokenizer and provenance to a directory; all of it or nothing.

    The base of ``QuantizedModelDataset`` and ``AdapterDataset``, which say what a complete
    directory holds (``check``) and how it is loaded.
    """

    def __init__(self, *, filepath: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Create the dataset.

        Args:
            filepath: The directory.
            metadata: Ignored by Kedro; kedro-viz reads the layer from it.
        """
        self._filepath = Path(filepath)
        self.metadata = metadata

    @abstractmethod
    def check(self) -> None:
        """Raise ``InputError`` unless the directory is complete and of this project."""

    def save(self, data: ModelArtifact) -> None:
        """Write weights, configuration, tokenizer, card and ``ja_instruct.json``."""
        with replacing(self._filepath) as new:
            self._save_model(data.model, new)
            data.tokenizer.save_pretrained(new)
            if data.card:  # after the model: PEFT writes a template of its own
                (new / CARD_FILE).write_text(data.card, encoding="utf-8")
            write_provenance(new, data.provenance)

    def _save_model(self, model: Any, directory: Path) -> None:
        """Write weights and configuration; the directory is made if it is not there."""
        model.save_pretrained(directory)

    def discard_unfinished(self) -> None:
        """Tidy up after a process that was killed while it saved."""
        discard_unfinished(self._filepath)

    def _exists(self) -> bool:
        return (self._filepath / PROVENANCE_FILE).is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
