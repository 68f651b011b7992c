"""``QuantizedModelDataset``: the 4-bit model directory that quantization writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ja_instruct.datasets.model_artifact_dataset import ModelArtifactDataset
from ja_instruct.errors import InputError
from ja_instruct.models.checksums import require_files
from ja_instruct.models.directory import (
    PROVENANCE_FILE,
    ModelDirectory,
    parameter_count,
    read_provenance,
    require_model_files,
)

if TYPE_CHECKING:
    from pathlib import Path

# A shard is copied to host memory before it is written; transformers' own limit of 50 GB would
# copy the whole model.
MAX_SHARD_SIZE = "5GB"
STAGE = "quantization"
_REMEDY = "make it with 'kedro run --pipeline=quantization' (and the same --env)"


class QuantizedModelDataset(ModelArtifactDataset):
    """Saves a quantized model with its tokenizer; loads a handle on the directory.

    ``ja_instruct.json`` in the directory says what was quantized, how, and the checksums of every
    file written. A directory without it, of another stage, or whose files are not those that were
    written is refused: asked for a well-known name, unsloth would load its own 4-bit upload
    instead of the weights that the user quantized, and nobody would notice.

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
        """Raise ``InputError`` unless the directory is an unchanged product of ``quantization``.

        Every file is hashed, once a process: 15 GB take some ten seconds.
        """
        require_model_files(self._filepath, _REMEDY)
        provenance = read_provenance(self._filepath)
        if not provenance:
            raise InputError(
                f"{self._filepath}: no {PROVENANCE_FILE}, so this directory was not written by "
                f"'quantization'; {_REMEDY}"
            )
        if provenance.get("stage") != STAGE:
            raise InputError(
                f"{self._filepath}: {PROVENANCE_FILE} says stage '{provenance.get('stage')}', so "
                f"this directory was not written by 'quantization'; {_REMEDY}"
            )
        self._require_4_bits(provenance.get("settings", {}).get("quant_type", "nf4"))
        require_files(
            self._filepath,
            provenance.get("files", {}),
            f"quantization: checking {self._filepath.name}",
            _REMEDY,
        )

    def _require_4_bits(self, quant_type: str) -> None:
        config = ModelDirectory(self._filepath, self._filepath.name).load_config()
        quantization = config.get("quantization_config") or {}
        found = (quantization.get("load_in_4bit"), quantization.get("bnb_4bit_quant_type"))
        if found != (True, quant_type):
            raise InputError(
                f"{self._filepath / 'config.json'}: quantization_config is not that of a 4-bit "
                f"{quant_type} model (load_in_4bit {found[0]}, bnb_4bit_quant_type {found[1]}); "
                f"{_REMEDY}"
            )

    def _save_model(self, model: Any, directory: Path) -> None:
        model.save_pretrained(directory, max_shard_size=MAX_SHARD_SIZE)

    def parameter_count(self) -> int:
        """Return the number of weights, for the check of free memory."""
        return parameter_count(self._filepath)

    def pending_download_bytes(self) -> int:
        """Return 0: nothing is downloaded."""
        return 0

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
