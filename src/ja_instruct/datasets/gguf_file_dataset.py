"""``GGUFFileDataset``: a model in one file for llama.cpp and its relatives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io import AbstractDataset

from ja_instruct.errors import InputError
from ja_instruct.tables.atomic import discard_unfinished, replacing

if TYPE_CHECKING:
    from ja_instruct.models.gguf import GGUFConversion

_MAGIC = b"GGUF"


class GGUFFileDataset(AbstractDataset["GGUFConversion", Path]):
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

    def __init__(self, *, filepath: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Create the dataset.

        Args:
            filepath: The file.
            metadata: Ignored by Kedro; kedro-viz reads the layer from it.
        """
        self._filepath = Path(filepath)
        self.metadata = metadata

    def check(self) -> None:
        """Raise ``InputError`` unless the file exists and is a GGUF file."""
        remedy = "make it with 'kedro run --pipeline=gguf_export' (and the same --env)"
        if not self._exists():
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

    def discard_unfinished(self) -> None:
        """Remove what a process left behind that was killed while it saved."""
        discard_unfinished(self._filepath)

    def _exists(self) -> bool:
        return self._filepath.is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}
