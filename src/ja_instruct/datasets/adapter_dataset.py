"""``AdapterDataset``: the LoRA adapter that supervised fine-tuning writes."""

from __future__ import annotations

import logging

from ja_instruct.datasets.model_artifact_dataset import ModelArtifactDataset
from ja_instruct.errors import InputError
from ja_instruct.models.checksums import require_files
from ja_instruct.models.directory import (
    PROVENANCE_FILE,
    ModelDirectory,
    read_provenance,
)

logger = logging.getLogger(__name__)

_REMEDY = "make it with 'kedro run --pipeline=sft' (and the same --env)"


class AdapterDataset(ModelArtifactDataset):
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

    def check(self) -> None:
        """Raise ``InputError`` unless the directory holds a safetensors adapter, unchanged.

        An adapter without ``ja_instruct.json``, which somebody else has trained, is taken with a
        warning.
        """
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            if not (self._filepath / name).is_file():
                raise InputError(f"{self._filepath}: no {name}; {_REMEDY}")
        noted = read_provenance(self._filepath).get("files")
        if noted:
            description = f"sft: checking {self._filepath.name}"
            require_files(self._filepath, noted, description, _REMEDY)
        else:
            logger.warning(
                "%s: no %s with checksums, so nothing tells who trained this adapter, and on what",
                self._filepath,
                PROVENANCE_FILE,
            )

    def load(self) -> ModelDirectory:
        """Return a handle on the directory; weights are read when a node asks for them."""
        self.check()
        provenance = read_provenance(self._filepath)
        return ModelDirectory(self._filepath.resolve(), self._filepath.name, provenance=provenance)
