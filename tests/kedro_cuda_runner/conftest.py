"""Makes what the runner's tests share importable, here and in the processes that they start."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from fake_devices import FakeDevices

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


@pytest.fixture(scope="session")
def subprocess_environment(subprocess_environment: dict[str, str]) -> dict[str, str]:
    """Return the environment of a process that finds the modules beside this file."""
    path = f"{subprocess_environment['PYTHONPATH']}{os.pathsep}{HERE}"
    return {**subprocess_environment, "PYTHONPATH": path}


@pytest.fixture(scope="session")
def layer(tmp_path_factory: pytest.TempPathFactory) -> FakeDevices:
    """Return two fake devices; what a process allocates there is free once it has ended."""
    return FakeDevices(tmp_path_factory.mktemp("devices"))
