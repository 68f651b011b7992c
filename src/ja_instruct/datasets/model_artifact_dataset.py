"""``ModelArtifactDataset``: the base of the model directories that this project writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ja_instruct.datasets.base import DirectoryDataset
from ja_instruct.errors import InputError
from ja_instruct.models.checksums import require_files
from ja_instruct.models.directory import (
    CARD_FILE,
    ModelArtifact,
    ModelDirectory,
    check_json_files,
    require_model_files,
    write_provenance,
)
from ja_instruct.models.json_files import PROVENANCE_FILE, read_provenance, remedy_of
from ja_instruct.tables.atomic import replacing

if TYPE_CHECKING:
    from pathlib import Path


class ModelArtifactDataset(DirectoryDataset[ModelArtifact, ModelDirectory]):
    """Saves weights, tokenizer, card and provenance to a directory; loads a handle on it.

    ``ja_instruct.json`` in the directory records its pipeline, its source and the checksums of
    every file. A directory is refused if it has none, if another pipeline wrote it, or if a file
    has changed.

    Attributes:
        STAGE: The pipeline that writes the directory.
        SOURCE: The key of the provenance that names the model it was made of.
    """

    MARKER = PROVENANCE_FILE
    STAGE: ClassVar[str]
    SOURCE: ClassVar[str]

    @property
    def _remedy(self) -> str:
        return remedy_of(self.STAGE)

    def check(self) -> None:
        """Raise ``InputError`` unless the directory is complete, of this stage and unchanged."""
        require_model_files(self._filepath, self._remedy)
        provenance = read_provenance(self._filepath, self._remedy)
        if provenance.get("stage") != self.STAGE:
            found = f"{PROVENANCE_FILE} says stage '{provenance.get('stage')}'"
            raise InputError(
                f"{self._filepath}: {found if provenance else f'no {PROVENANCE_FILE}'}, so this "
                f"directory was not written by '{self.STAGE}'; {self._remedy}"
            )
        self._check_files(provenance)
        check_json_files(self._filepath, self._remedy)

    def _check_files(self, provenance: dict[str, Any]) -> None:
        description = f"{self.STAGE}: checking {self._filepath.name}"
        require_files(self._filepath, provenance.get("files", {}), description, self._remedy)

    def load(self) -> ModelDirectory:
        """Return a handle on the directory; a node that uses it reads the weights."""
        self.check()
        provenance = read_provenance(self._filepath, self._remedy)
        source = provenance.get(self.SOURCE, {})
        return ModelDirectory(
            # unsloth and transformers would take a relative path for a hub name
            self._filepath.resolve(),
            source.get("model_id", self._filepath.name),
            source.get("revision"),
            provenance,
        )

    def save(self, data: ModelArtifact) -> None:
        """Write weights, configuration, tokenizer, card and ``ja_instruct.json``."""
        with replacing(self._filepath) as new:
            self._save_model(data.model, new)
            data.tokenizer.save_pretrained(new)
            if data.card:  # after the model, because PEFT writes a card of its own
                (new / CARD_FILE).write_text(data.card, encoding="utf-8")
            write_provenance(new, data.provenance)

    def _save_model(self, model: Any, directory: Path) -> None:
        """Write weights and configuration; ``directory`` does not exist yet."""
        model.save_pretrained(directory)
