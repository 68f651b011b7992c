"""``GGUFFileDataset``: a model in one file for llama.cpp and its relatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ja_instruct.datasets.base import PathDataset
from ja_instruct.errors import InputError
from ja_instruct.tables.atomic import replacing

if TYPE_CHECKING:
    from pathlib import Path

    from ja_instruct.models.gguf import GGUFConversion

_MAGIC = b"GGUF"


class GGUFFileDataset(PathDataset["GGUFConversion", "Path"]):
    """Saves a GGUF file; loads its path.

    Examples:
        YAML API:

        ```yaml
        gguf_model:
          type: ja_instruct.datasets.GGUFFileDataset
          filepath: data/06_models/base/model.gguf
        ```

        Python API:

        >>> dataset = GGUFFileDataset(filepath=tmp_path / "model.gguf")
        >>> dataset.exists()
        False
    """

    def check(self) -> None:
        """Raise ``InputError`` unless the file exists and is a GGUF file."""
        remedy = "make it with 'kedro run --pipeline=gguf_export' (and the same --env)"
        if not self._filepath.is_file():
            raise InputError(f"{self._filepath}: no such file; {remedy}")
        with self._filepath.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise InputError(f"{self._filepath}: not a GGUF file; {remedy}")

    def load(self) -> Path:
        """Return the file's path."""
        self.check()
        return self._filepath.resolve()

    def save(self, data: GGUFConversion) -> None:
        """Write the file; it appears when it is complete."""
        with replacing(self._filepath) as new:
            data.write(new)
