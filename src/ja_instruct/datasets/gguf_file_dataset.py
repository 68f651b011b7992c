"""``GGUFFileDataset``: a model in one file for llama.cpp and its relatives."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io import AbstractDataset

from ja_instruct.errors import InputError
from ja_instruct.models.gguf import convert, find_converter
from ja_instruct.tables.atomic import discard_unfinished, replacing

if TYPE_CHECKING:
    from ja_instruct.models.gguf import GGUFConversion

logger = logging.getLogger(__name__)

_MAGIC = b"GGUF"


class GGUFFileDataset(AbstractDataset["GGUFConversion", Path]):
    """Has llama.cpp's converter write the file; loads its path.

    Examples:
        YAML API:

        ```yaml
        gguf_model:
          type: ja_instruct.datasets.GGUFFileDataset
          filepath: data/06_models/base/model.gguf
          llama_cpp_dir: /opt/llama.cpp
        ```

        Python API:

        >>> dataset = GGUFFileDataset(filepath=tmp_path / "model.gguf")
        >>> dataset.exists()
        False
    """

    def __init__(
        self,
        *,
        filepath: str | Path,
        llama_cpp_dir: str | Path | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Create the dataset.

        Args:
            filepath: The file.
            llama_cpp_dir: A copy of llama.cpp's sources; only needed to save.
            metadata: Ignored by Kedro; kedro-viz reads the layer from it.
        """
        self._filepath = Path(filepath)
        self._llama_cpp_dir = None if llama_cpp_dir is None else Path(llama_cpp_dir)
        self.metadata = metadata

    def check(self) -> None:
        """Raise ``InputError`` unless the file is there and is a GGUF file."""
        remedy = "make it with 'kedro run --pipeline=gguf_export' (and the same --env)"
        if not self._exists():
            raise InputError(f"{self._filepath}: no such file; {remedy}")
        with self._filepath.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise InputError(f"{self._filepath}: not a GGUF file; {remedy}")

    def check_output(self) -> None:
        """Raise ``InputError`` when the converter is missing, so that saving would fail."""
        find_converter(self._llama_cpp_dir)

    def load(self) -> Path:
        """Return the file's path."""
        self.check()
        return self._filepath.resolve()

    def save(self, data: GGUFConversion) -> None:
        """Convert; the file appears when it is complete."""
        script = find_converter(self._llama_cpp_dir)
        logger.info("Converting %s to GGUF (%s)", data.model, data.outtype)
        with replacing(self._filepath) as new:
            convert(data, script, new)

    def discard_unfinished(self) -> None:
        """Tidy up after a process that was killed while it saved."""
        discard_unfinished(self._filepath)

    def _exists(self) -> bool:
        return self._filepath.is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "llama_cpp_dir": str(self._llama_cpp_dir)}
