"""MLflow's SQLite store is whole or not there, and one that cannot be used is not changed."""

import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.store.db.utils import _get_alembic_config, _get_latest_schema_revision
from mlflow.store.tracking.dbmodels.initial_models import Base
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy import create_engine

from ja_instruct.hooks import tracking_store
from ja_instruct.hooks.tracking_store import prepare_store

SCRIPT = Path(__file__).with_name("make_store.py")
# the next migration adds the table trace_metrics
EARLIER_REVISION = "1bd49d398cd23"


def make_store(path):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(path)], stdout=subprocess.PIPE, text=True
    )


def execute(path, *statements):
    connection = sqlite3.connect(path)
    for statement in statements:
        result = connection.execute(statement).fetchall()
    connection.commit()
    connection.close()
    return result


def log_a_run(path):
    client = MlflowClient(f"sqlite:///{path}")
    run = client.create_run("0")
    client.log_metric(run.info.run_id, "loss", 0.5)
    return run.info.run_id


def test_a_new_store_is_used_by_mlflow_as_it_is(made_store, made):
    assert prepare_store(made_store) is None
    assert made_store.read_bytes() == made
    run = log_a_run(made_store)
    assert MlflowClient(f"sqlite:///{made_store}").get_run(run).data.metrics == {"loss": 0.5}


def test_a_process_that_is_killed_leaves_no_store(store):
    process = make_store(store)
    # once SQLite has written something, most migrations are still to come
    while process.poll() is None and not any(
        new.stat().st_size for new in store.parent.glob(".mlflow.db.*.new")
    ):
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert list(store.parent.glob(".mlflow.db.*.new"))
    assert not store.exists()

    store.with_name("mlflow.db-journal").write_bytes(b"of a store that was removed")
    assert prepare_store(store) is None
    log_a_run(store)
    assert {path.name for path in store.parent.iterdir()} == {"mlflow.db", ".mlflow.db.lock"}


def test_two_processes_that_begin_together_make_one_store(store):
    processes = [make_store(store) for _ in range(2)]
    assert [one.communicate(timeout=120)[0] for one in processes] == ["problem: None\n"] * 2
    log_a_run(store)


@pytest.fixture(scope="module")
def half_made(tmp_path_factory):
    """The bytes of a store that MLflow was migrating when its process was killed."""
    from alembic import command

    path = tmp_path_factory.mktemp("half_made") / "mlflow.db"
    engine = create_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    command.upgrade(_get_alembic_config(str(engine.url)), EARLIER_REVISION)
    engine.dispose()
    execute(path, "CREATE TABLE trace_metrics (request_id VARCHAR)")
    content = path.read_bytes()
    with pytest.raises(Exception, match="trace_metrics already exists"):
        SqlAlchemyStore(f"sqlite:///{path}", "./mlruns")
    return content


@pytest.fixture
def half_migrated(store, half_made):
    store.parent.mkdir()
    store.write_bytes(half_made)
    return store


def test_a_half_migrated_store_without_content_is_made_anew(half_migrated):
    assert prepare_store(half_migrated) is None
    (revision,) = execute(half_migrated, "SELECT version_num FROM alembic_version")[0]
    assert revision == _get_latest_schema_revision()
    log_a_run(half_migrated)


def test_a_half_migrated_store_with_runs_is_kept(half_migrated):
    execute(half_migrated, "INSERT INTO runs (run_uuid, name) VALUES ('1', 'of last year')")
    before = half_migrated.read_bytes()
    problem = prepare_store(half_migrated)
    assert f"run 'mlflow db upgrade sqlite:///{half_migrated}'" in problem
    assert "move it elsewhere, and the next run makes a new store" in problem
    assert half_migrated.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (lambda made: b"not a database" * 1000, "file is not a database"),
        (lambda made: made[: len(made) // 3], "database disk image is malformed"),
    ],
)
def test_a_corrupt_store_is_kept(store, made, content, cause):
    store.parent.mkdir()
    store.write_bytes(content(made))
    problem = prepare_store(store)
    assert problem == f"{cause}; move it elsewhere, and the next run makes a new store"
    assert store.read_bytes() == content(made)


def test_an_empty_file_becomes_a_store(store):
    store.parent.mkdir()
    store.touch()
    assert prepare_store(store) is None
    log_a_run(store)


def test_a_store_that_is_locked(made_store, monkeypatch):
    monkeypatch.setattr(tracking_store, "LOCK_SECONDS", 0.1)
    other = sqlite3.connect(made_store, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert prepare_store(made_store) == "database is locked"
    other.rollback()
    other.close()
    assert prepare_store(made_store) is None


@pytest.fixture
def readable_folder():
    """A folder whose files others may read; this process is not root in the meantime."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def as_other_user(call):
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        return call()
    finally:
        if is_root:
            os.seteuid(0)


def test_a_store_that_is_read_only(readable_folder, made):
    store = readable_folder / "mlflow.db"
    store.write_bytes(made)
    store.chmod(0o444)
    readable_folder.chmod(0o555)
    assert "readonly database" in as_other_user(lambda: prepare_store(store))
    assert as_other_user(lambda: prepare_store(readable_folder / "x.db")) == "Permission denied"
    readable_folder.chmod(0o755)
    assert [path.name for path in readable_folder.iterdir()] == ["mlflow.db"]
    assert store.read_bytes() == made


def test_a_folder_in_the_place_of_the_store(store):
    store.mkdir(parents=True)
    assert prepare_store(store) == "unable to open database file"
