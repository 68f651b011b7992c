"""Makes what these tests share importable, here and in the processes that they start."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from freshness_project import Project

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


@pytest.fixture(scope="session")
def subprocess_environment(subprocess_environment: dict[str, str]) -> dict[str, str]:
    """Return the environment of a process that finds the modules beside this file."""
    path = f"{subprocess_environment['PYTHONPATH']}{os.pathsep}{HERE}"
    return {**subprocess_environment, "PYTHONPATH": path}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return a project: ``raw`` is cleaned, a model trained on it, and a report written."""
    from freshness_project import Project

    monkeypatch.chdir(tmp_path)
    return Project(tmp_path, monkeypatch)
