"""Check the folders outside of the project that environment variables name."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

from ja_instruct.disk_errors import variables
from kedro_cuda_runner.outputs import existing_parent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kedro.pipeline.node import Node

    from kedro_cuda_runner.resources import Resources


def cache_problems(resources: Mapping[Node, Resources], *, is_downloading: bool) -> list[str]:
    """Return the variables whose folders cannot be written to, among those that a run needs.

    Args:
        resources: The GPU nodes of the run, which may compute on the CPU.
        is_downloading: Whether an input has to be downloaded.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        return [
            "there is no folder for temporary files; set TMPDIR to a folder that can be written"
        ]
    needed = {"TORCHINDUCTOR_CACHE_DIR": "PyTorch's compiled code"}
    if any(required.devices for required in resources.values()):
        needed["TRITON_CACHE_DIR"] = "compiled GPU kernels"
    if is_downloading:
        needed["HF_HOME"] = "downloads"
    folders = variables()
    return [
        f"{folders[name]}, the folder of {content}, cannot be written to; set {name} to a folder "
        f"that can"
        for name, content in needed.items()
        if name in folders and not _is_writable(folders[name])
    ]


def _is_writable(path: Path) -> bool:
    return os.access(existing_parent(path), os.W_OK | os.X_OK)
