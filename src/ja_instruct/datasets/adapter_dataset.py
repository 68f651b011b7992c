"""``AdapterDataset``: the LoRA adapter that supervised fine-tuning writes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ja_instruct.datasets.model_artifact_dataset import ModelArtifactDataset
from ja_instruct.errors import InputError
from ja_instruct.models.json_files import (
    ADAPTER_CONFIG_FILE,
    PROVENANCE_FILE,
    read_adapter_config,
    read_provenance,
)

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)


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

    STAGE = "sft"
    SOURCE = ""  # the handle names the adapter itself, not its base

    def _save_model(self, model: Any, directory: Path) -> None:
        for config in model.peft_config.values():
            for name, value in vars(config).items():
                if isinstance(value, set):  # PEFT would write it in another order in every process
                    setattr(config, name, sorted(value))
        super()._save_model(model, directory)

    def check(self) -> None:
        """Raise ``InputError`` unless the directory holds a safetensors adapter, unchanged.

        An adapter without ``ja_instruct.json``, trained elsewhere, is accepted with a
        warning.
        """
        for name in (ADAPTER_CONFIG_FILE, "adapter_model.safetensors"):
            if not (self._filepath / name).exists():
                raise InputError(f"{self._filepath}: no {name}; {self._remedy}")
        read_adapter_config(self._filepath, self._remedy)
        provenance = read_provenance(self._filepath, self._remedy)
        if provenance.get("files"):
            self._check_files(provenance)
        else:
            logger.warning(
                "%s: no %s with checksums, so the origin of this adapter is unknown",
                self._filepath,
                PROVENANCE_FILE,
            )
