"""``QuantizedModelDataset``: the 4-bit model directory that quantization writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ja_instruct.datasets.model_artifact_dataset import ModelArtifactDataset
from ja_instruct.errors import InputError
from ja_instruct.models.directory import module_names, parameter_count
from ja_instruct.models.json_files import CONFIG_FILE, read_config

if TYPE_CHECKING:
    from pathlib import Path

# A shard is copied to host memory before it is written; transformers' default of 50 GB would copy
# the whole model.
MAX_SHARD_SIZE = "5GB"


class QuantizedModelDataset(ModelArtifactDataset):
    """Saves a quantized model with its tokenizer; loads a handle on the directory.

    Its checks matter because of unsloth, which replaces well-known model names by its own 4-bit
    uploads: only a verified directory holds the weights that the user quantized.

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

    STAGE = "quantization"
    SOURCE = "source"

    def _check_files(self, provenance: dict[str, Any]) -> None:
        quant_type = provenance.get("settings", {}).get("quant_type", "nf4")
        config = read_config(self._filepath, self._remedy)
        quantization = config.get("quantization_config") or {}
        found = (quantization.get("load_in_4bit"), quantization.get("bnb_4bit_quant_type"))
        if found != (True, quant_type):
            raise InputError(
                f"{self._filepath / CONFIG_FILE}: quantization_config is not that of a 4-bit "
                f"{quant_type} model (load_in_4bit {found[0]}, bnb_4bit_quant_type {found[1]}); "
                f"{self._remedy}"
            )
        super()._check_files(provenance)

    def _save_model(self, model: Any, directory: Path) -> None:
        model.save_pretrained(directory, max_shard_size=MAX_SHARD_SIZE)

    def parameter_count(self) -> int | None:
        """Return the number of weights; None before the model is made."""
        return parameter_count(self._filepath) if self._exists() else None

    def module_names(self) -> frozenset[str] | None:
        """Return the names of the matrices; None before the model is made."""
        return module_names(self._filepath) if self._exists() else None

    def peek_config(self) -> dict[str, Any] | None:
        """Return ``config.json``, or None before the model exists; no weights are read."""
        exists = self._exists() and (self._filepath / CONFIG_FILE).exists()
        return read_config(self._filepath, self._remedy) if exists else None
