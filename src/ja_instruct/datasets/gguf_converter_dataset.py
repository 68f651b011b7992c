"""``GGUFConverterDataset``: llama.cpp's script that writes GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ja_instruct.datasets.base import InputDataset
from ja_instruct.errors import InputError

CONVERTER = "convert_hf_to_gguf.py"
_LLAMA_CPP = "a copy of https://github.com/ggml-org/llama.cpp"


class GGUFConverterDataset(InputDataset[Path]):
    """The converter in a copy of llama.cpp; loads the path of the script.

    Examples:
        YAML API:

        ```yaml
        gguf_converter:
          type: ja_instruct.datasets.GGUFConverterDataset
          llama_cpp_dir: /opt/llama.cpp
        ```

        Python API:

        >>> GGUFConverterDataset().check()
        Traceback (most recent call last):
        ja_instruct.errors.InputError: 'llama_cpp_dir' of this catalog entry is not set; ...
    """

    def __init__(
        self,
        *,
        llama_cpp_dir: str | Path | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Create the dataset.

        Args:
            llama_cpp_dir: A copy of llama.cpp's sources; None until the user names one.
            metadata: Ignored by Kedro; kedro-viz reads the layer from it.
        """
        self._llama_cpp_dir = None if llama_cpp_dir is None else Path(llama_cpp_dir)
        self.metadata = metadata

    def check(self) -> None:
        """Raise ``InputError`` unless the configured directory contains the converter."""
        self.load()

    def load(self) -> Path:
        """Return the path of the script."""
        if self._llama_cpp_dir is None:
            raise InputError(
                f"'llama_cpp_dir' of this catalog entry is not set; name {_LLAMA_CPP}, whose "
                f"converter writes GGUF files (the sources are enough, nothing is compiled)"
            )
        script = self._llama_cpp_dir / CONVERTER
        if not script.is_file():
            raise InputError(
                f"no {CONVERTER} in llama_cpp_dir {self._llama_cpp_dir}; name {_LLAMA_CPP}"
            )
        return script
