"""A model directory as a GGUF file, written by llama.cpp's own converter."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ja_instruct.disk_errors import explain_disk_error
from ja_instruct.errors import InputError

logger = logging.getLogger(__name__)

_LINES_SHOWN = 12


@dataclass(frozen=True)
class GGUFConversion:
    """A GGUF file of a 16-bit model directory, converted by llama.cpp's script while it is written.

    ``outtype`` is the type of the weights, as the script's ``--outtype`` accepts it.
    """

    model: Path
    converter: Path
    outtype: str

    def write(self, target: Path) -> None:
        """Run the converter in a process of its own, without network access.

        Raises:
            InputError: The converter failed; the message shows its last lines.
            OSError: The disk is full.
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
            if explain_disk_error(OSError(output)):
                raise OSError(output)  # the dataset names the file and the free space
            raise InputError(
                f"{self.converter} could not convert {self.model} (exit status {done.returncode}); "
                f"a newer copy of llama.cpp may support this model. Its output:\n{output}"
            )
