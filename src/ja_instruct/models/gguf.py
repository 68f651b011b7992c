"""A model directory as a GGUF file, written by llama.cpp's own converter."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ja_instruct.errors import InputError

logger = logging.getLogger(__name__)

CONVERTER = "convert_hf_to_gguf.py"
_LINES_SHOWN = 12


def find_converter(llama_cpp_dir: Path | None) -> Path:
    """Return the path of the converter in a copy of llama.cpp.

    Raises:
        InputError: No copy is configured, or it does not contain the converter.
    """
    if llama_cpp_dir is None:
        raise InputError(
            "'llama_cpp_dir' of this catalog entry is not set; name a copy of "
            "https://github.com/ggml-org/llama.cpp, whose converter writes GGUF files (the sources "
            "are enough, nothing is compiled)"
        )
    script = llama_cpp_dir / CONVERTER
    if not script.is_file():
        raise InputError(
            f"no {CONVERTER} in llama_cpp_dir {llama_cpp_dir}; name a copy of "
            f"https://github.com/ggml-org/llama.cpp"
        )
    return script


@dataclass(frozen=True)
class GGUFConversion:
    """A GGUF file that is converted while it is written.

    Attributes:
        model: A 16-bit model directory with its tokenizer.
        converter: llama.cpp's script.
        outtype: The type of the weights, as the script's ``--outtype`` accepts it.
    """

    model: Path
    converter: Path
    outtype: str

    def write(self, target: Path) -> None:
        """Run the converter in a process of its own, without network access.

        Args:
            target: The GGUF file to write.

        Raises:
            InputError: The converter failed; the message shows its last lines.
        """
        logger.info("Converting %s to GGUF (%s)", self.model, self.outtype)
        command = [sys.executable, str(self.converter), str(self.model)]
        command += ["--outfile", str(target), "--outtype", self.outtype]
        done = subprocess.run(  # noqa: S603  (the user names the copy of llama.cpp)
            command,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not target.is_file():
            output = "\n".join((done.stdout + done.stderr).strip().split("\n")[-_LINES_SHOWN:])
            raise InputError(
                f"{self.converter} could not convert {self.model} (exit status {done.returncode}); "
                f"a newer copy of llama.cpp may support this model. Its output:\n{output}"
            )
