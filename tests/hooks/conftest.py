"""Fixtures of the hooks' tests: a new MLflow store, without the seconds that making it takes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ja_instruct.hooks.tracking_store import prepare_store

# the modules that these tests share
sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the bytes of a new store."""
    path = Path(tmp_path_factory.mktemp("made") / "mlflow.db")
    assert prepare_store(path) is None
    return path.read_bytes()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return the path of a store that does not exist yet, nor its folder."""
    return tmp_path / "mlflow" / "mlflow.db"


@pytest.fixture
def made_store(store: Path, made: bytes) -> Path:
    """Return the path of a new store."""
    store.parent.mkdir()
    store.write_bytes(made)
    return store
