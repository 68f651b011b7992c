"""``AdapterDataset``: the LoRA adapter that supervised fine-tuning writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset

from ja_instruct.atomic import replacing
from ja_instruct.errors import InputError
from ja_instruct.models import (
    PROVENANCE_FILE,
    ModelArtifact,
    ModelDirectory,
    read_provenance,
    write_provenance,
)

_REMEDY = "make it with 'kedro run --pipeline=sft' (and the same --env)"


class AdapterDataset(AbstractDataset[ModelArtifact, ModelDirectory]):
    """Saves a PEFT adapter with its tokenizer; loads a handle on the directory.

    Examples:
        YAML API:

        ```yaml
        adapter:
          type: ja_instruct.datasets.AdapterDataset
          filepath: data/06_models/base/adapter
        ```

        Python API:

        >>> dataset = AdapterDataset(filepath=tmp_path / "adapter")
        >>> dataset.exists()
        False
    """

    def __init__(self, *, filepath: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Create the dataset.

        Args:
            filepath: The directory.
            metadata: Ignored by Kedro; kedro-viz reads the layer from it.
        """
        self._filepath = Path(filepath)
        self.metadata = metadata

    def check(self) -> None:
        """Raise ``InputError`` unless the directory holds a safetensors adapter."""
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            if not (self._filepath / name).is_file():
                raise InputError(f"{self._filepath}: no {name}; {_REMEDY}")

    def load(self) -> ModelDirectory:
        """Return a handle on the directory; weights are read when a node asks for them."""
        self.check()
        provenance = read_provenance(self._filepath)
        return ModelDirectory(self._filepath.resolve(), self._filepath.name, provenance=provenance)

    def save(self, data: ModelArtifact) -> None:
        """Write adapter, tokenizer and provenance; all of it or nothing."""
        with replacing(self._filepath) as new:
            data.model.save_pretrained(new)
            data.tokenizer.save_pretrained(new)
            write_provenance(new, data.provenance)

    def _exists(self) -> bool:
        return (self._filepath / PROVENANCE_FILE).is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
