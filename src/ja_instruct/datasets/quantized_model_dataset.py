"""``QuantizedModelDataset``: the 4-bit model directory that quantization writes."""

from __future__ import annotations

from typing import Any

from ja_instruct.datasets.model_artifact_dataset import ModelArtifactDataset
from ja_instruct.errors import InputError
from ja_instruct.models import (
    PROVENANCE_FILE,
    ModelDirectory,
    parameter_count,
    read_provenance,
    require_model_files,
)

_REMEDY = "make it with 'kedro run --pipeline=quantization' (and the same --env)"


class QuantizedModelDataset(ModelArtifactDataset):
    """Saves a quantized model with its tokenizer; loads a handle on the directory.

    ``ja_instruct.json`` in the directory says what was quantized, how, and the checksums of the
    weights written. A directory without it was not made by this project and is refused: asked
    for a well-known name, unsloth would load its own 4-bit upload instead of the weights that
    the user quantized.

    Examples:
        YAML API:

        ```yaml
        quantized_model:
          type: ja_instruct.datasets.QuantizedModelDataset
          filepath: data/06_models/base/quantized_model
        ```

        Python API:

        >>> dataset = QuantizedModelDataset(filepath=tmp_path / "quantized_model")
        >>> dataset.exists()
        False
    """

    def check(self) -> None:
        """Raise ``InputError`` unless the directory is a product of ``quantization``."""
        require_model_files(self._filepath, _REMEDY)
        if not read_provenance(self._filepath):
            raise InputError(
                f"{self._filepath}: no {PROVENANCE_FILE}, so this directory was not written by "
                f"'quantization'; {_REMEDY}"
            )

    def parameter_count(self) -> int:
        """Return the number of weights, for the check of free memory."""
        return parameter_count(self._filepath)

    def peek_config(self) -> dict[str, Any] | None:
        """Return ``config.json``, None before the model is made; nothing is loaded."""
        if not self._exists() or not (self._filepath / "config.json").is_file():
            return None
        return ModelDirectory(self._filepath, self._filepath.name).load_config()

    def load(self) -> ModelDirectory:
        """Return a handle on the directory; weights are read when a node asks for them."""
        self.check()
        provenance = read_provenance(self._filepath)
        source = provenance.get("source", {})
        return ModelDirectory(
            # unsloth and transformers take a relative path for a hub name
            self._filepath.resolve(),
            source.get("model_id", self._filepath.name),
            source.get("revision"),
            provenance,
        )
