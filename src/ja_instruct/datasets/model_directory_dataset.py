"""``ModelDirectoryDataset``: a base model in a local directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ja_instruct.datasets.base import InputPathDataset
from ja_instruct.models.directory import (
    ModelDirectory,
    check_json_files,
    module_names,
    parameter_count,
    refuse_quantized,
    require_model_files,
)
from ja_instruct.models.json_files import CONFIG_FILE, read_config, read_provenance

if TYPE_CHECKING:
    from pathlib import Path

REMEDY = "correct 'filepath' of this catalog entry, or download the model to it"


class ModelDirectoryDataset(InputPathDataset[ModelDirectory]):
    """A 16-bit transformers model directory that others made; it is only read.

    Examples:
        YAML API:

        ```yaml
        base_model:
          type: ja_instruct.datasets.ModelDirectoryDataset
          filepath: /models/gemma-2-27b
          model_id: google/gemma-2-27b
        ```

        Python API:

        >>> dataset = ModelDirectoryDataset(filepath="/models/gemma-2-27b")
        >>> dataset.exists()
        False
    """

    def __init__(
        self,
        *,
        filepath: str | Path,
        model_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Create the dataset.

        Args:
            filepath: The directory, with ``config.json``, safetensors and tokenizer.
            model_id: How to name the model in reports; the directory's name by default.
            metadata: Ignored by Kedro; kedro-viz reads the layer from it.
        """
        super().__init__(filepath=filepath, metadata=metadata)
        self._model_id = model_id or self._filepath.name

    def check(self) -> None:
        """Raise ``InputError`` if the directory holds no model, or a quantized one."""
        require_model_files(self._filepath, REMEDY)
        check_json_files(self._filepath, REMEDY)
        refuse_quantized(self._handle())

    def parameter_count(self) -> int:
        """Return the number of weights, for the check of free memory."""
        return parameter_count(self._filepath)

    def module_names(self) -> frozenset[str] | None:
        """Return the names of the matrices, or None if the model is missing."""
        return module_names(self._filepath) if self._exists() else None

    def weights_bytes(self) -> int:
        """Return the size of the safetensors files."""
        return sum(path.stat().st_size for path in self._filepath.glob("*.safetensors"))

    def peek_config(self) -> dict[str, Any] | None:
        """Return ``config.json``, or None if it is missing; nothing is checked or loaded."""
        return read_config(self._filepath, REMEDY) if self._exists() else None

    def load(self) -> ModelDirectory:
        """Return a handle on the directory; a node that uses it reads the weights."""
        self.check()
        return self._handle()

    def _handle(self) -> ModelDirectory:
        provenance = read_provenance(self._filepath, REMEDY)
        return ModelDirectory(self._filepath, self._model_id, provenance=provenance)

    def _exists(self) -> bool:
        return (self._filepath / CONFIG_FILE).is_file()
