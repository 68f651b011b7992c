"""Fake devices for the CUDA runner: those of its tests.

The environment ``test`` computes on the CPU, where GPU nodes run one at a time. Here each declares
one device and a third of its memory, so that several run at the same time.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

VARIABLE = "JA_FAULTS_DEVICES"
DECLARED = {"devices": 1, "memory_gb": 8}


def install() -> None:
    """Replace the runner's devices and declarations, at once or when it is imported."""
    if VARIABLE not in os.environ:
        return
    for name, replace in REPLACED.items():
        if name in sys.modules:
            replace(sys.modules[name])
        else:
            sys.meta_path.insert(0, _Finder(name, replace))


def _replace_devices(devices: Any) -> None:
    from fake_devices import FakeDevices

    devices._layer = FakeDevices(Path(os.environ[VARIABLE]))


def _replace_declarations(resources: Any) -> None:
    resources._declared_by_function = lambda _: DECLARED


REPLACED: dict[str, Callable[[Any], None]] = {
    "kedro_cuda_runner.devices": _replace_devices,
    "kedro_cuda_runner.resources": _replace_declarations,
}


class _Finder(importlib.abc.MetaPathFinder):
    """Finds a module as others do, and changes it after its import.

    Importing it at the start would import Kedro before the project's settings are read.
    """

    def __init__(self, name: str, replace: Callable[[Any], None]) -> None:
        self.name = name
        self.replace = replace

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_replace(module: ModuleType) -> None:
            execute(module)
            self.replace(module)

        spec.loader.exec_module = execute_and_replace  # type: ignore[method-assign]
        return spec
