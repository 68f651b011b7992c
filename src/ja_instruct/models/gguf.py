"""A model directory as a GGUF file, by the converter that llama.cpp keeps."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ja_instruct.errors import InputError

CONVERTER = "convert_hf_to_gguf.py"
_SHOWN_LINES = 12


@dataclass(frozen=True)
class GGUFConversion:
    """What is to be converted, on its way to a GGUF file.

    Attributes:
        model: A 16-bit model directory with its tokenizer.
        outtype: Type of the weights, as the converter's ``--outtype`` takes it.
    """

    model: Path
    outtype: str


def find_converter(llama_cpp_dir: Path | None) -> Path:
    """Return the converter's script in a copy of llama.cpp.

    Raises:
        InputError: No copy is named, or it does not hold the converter.
    """
    if llama_cpp_dir is None:
        raise InputError(
            "'llama_cpp_dir' of this catalog entry is not set; name a copy of "
            "https://github.com/ggml-org/llama.cpp, whose converter writes GGUF files (its "
            "sources are enough, nothing is compiled)"
        )
    script = llama_cpp_dir / CONVERTER
    if not script.is_file():
        raise InputError(
            f"no {CONVERTER} in llama_cpp_dir {llama_cpp_dir}; name a copy of "
            f"https://github.com/ggml-org/llama.cpp"
        )
    return script


def convert(conversion: GGUFConversion, script: Path, target: Path) -> None:
    """Have the converter write ``target``, in a process of its own and without network.

    Raises:
        InputError: The converter failed; the message shows how.
    """
    command = [sys.executable, str(script), str(conversion.model)]
    command += ["--outfile", str(target), "--outtype", conversion.outtype]
    done = subprocess.run(  # noqa: S603  (the user names the copy of llama.cpp)
        command,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or not target.is_file():
        said = "\n".join((done.stdout + done.stderr).strip().split("\n")[-_SHOWN_LINES:])
        raise InputError(
            f"{script} could not convert {conversion.model} (exit status {done.returncode}); "
            f"a newer copy of llama.cpp may know this model. It said:\n{said}"
        )
