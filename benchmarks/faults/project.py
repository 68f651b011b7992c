"""Small projects of their own: conf copied, code linked, data of the environment ``test``."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ("ja_instruct", "kedro_cuda_runner", "kedro_freshness")


def make_project(target: Path) -> Path:
    """Make a project with the tiny models and without outputs."""
    shutil.copytree(PROJECT / "conf", target / "conf", ignore=shutil.ignore_patterns("local"))
    (target / "conf/local").mkdir()
    shutil.copytree(PROJECT / "data/01_raw/demo", target / "data/01_raw/demo")
    shutil.copy(PROJECT / "data/01_raw/perplexity_texts.jsonl", target / "data/01_raw")
    for name in ("pyproject.toml", ".telemetry"):
        shutil.copy(PROJECT / name, target)
    (target / "src").mkdir()
    for package in PACKAGES:
        if (PROJECT / "src" / package).is_dir():
            (target / "src" / package).symlink_to(PROJECT / "src" / package)
    models = [sys.executable, str(PROJECT / "tests/tiny_models.py"), str(target)]
    subprocess.run(models, check=True, capture_output=True)
    return target


def copy_project(source: Path, target: Path) -> Path:
    """Copy a project with its outputs; times of files stay, on which fingerprints may rest."""
    return Path(shutil.copytree(source, target, symlinks=True))
