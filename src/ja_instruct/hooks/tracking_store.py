"""MLflow's local SQLite store: made whole or not at all, and examined before MLflow opens it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from ja_instruct.hooks.untracked import describe, first_cause
from ja_instruct.tables.atomic import discard_unfinished, replacing

if TYPE_CHECKING:
    from pathlib import Path

SQLITE = "sqlite:///"
# as long as MLflow waits for a lock
LOCK_SECONDS = 20
# tables that the migrations themselves fill
FILLED_BY_MIGRATIONS = {"alembic_version", "workspaces"}
MOVE_IT = "move it elsewhere, and the next run makes a new store"
# written by a transaction, and replayed into whatever file has the name of the store
JOURNALS = ("-journal", "-wal", "-shm")


def prepare_store(path: Path) -> str | None:
    """Make the store if there is none, or one that an ended process left half made.

    MLflow's migrations take seconds, and SQLite does not undo them when the process is killed:
    they run on a temporary file. Of two processes that begin together, one waits for the other.

    Returns:
        Why the store cannot be used, with the remedy; None if it can be used.
    """
    from mlflow.utils.file_utils import ExclusiveFileLock

    try:
        if _is_to_be_made(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with ExclusiveFileLock(str(path.with_name(f".{path.name}.lock"))):
                discard_unfinished(path)
                if _is_to_be_made(path):
                    _make(path)
    except _UnusableStoreError as error:
        return str(error)
    except Exception as error:  # of the file system, SQLite, SQLAlchemy or alembic
        cause = first_cause(error)
        is_corrupt = type(cause) is sqlite3.DatabaseError  # locked, full: a subclass of it
        return f"{describe(cause)}; {MOVE_IT}" if is_corrupt else describe(cause)
    return None


class _UnusableStoreError(Exception):
    """The message says why a store cannot be used, and the remedy."""


def _is_to_be_made(path: Path) -> bool:
    """Return whether the store is missing, or is empty and only partly migrated."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    if not path.exists() or (path.is_file() and not path.stat().st_size):
        return True
    uri = f"{path.absolute().as_uri()}?mode=rw"
    with closing(sqlite3.connect(uri, uri=True, timeout=LOCK_SECONDS)) as store:
        names = store.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        tables = {name for (name,) in names if not name.startswith("sqlite_")}
        revision = None
        if "alembic_version" in tables:
            (revision,) = store.execute("SELECT version_num FROM alembic_version").fetchone() or [0]
        if revision == _get_latest_schema_revision():
            # fails if another process writes, or this one cannot
            store.execute("BEGIN IMMEDIATE")
            store.execute("PRAGMA user_version = 1")
            store.rollback()
            return False
        for name in tables - FILLED_BY_MIGRATIONS:
            if store.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone() is None:  # noqa: S608
                continue
            raise _UnusableStoreError(
                "another version of MLflow made it, or its migration was interrupted; copy it, "
                f"then run 'mlflow db upgrade {SQLITE}{path}'. If that fails, {MOVE_IT}"
            )
    return True


def _make(path: Path) -> None:
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for journal in JOURNALS:
        path.with_name(path.name + journal).unlink(missing_ok=True)
        for remains in path.parent.glob(f".{path.name}.*.new{journal}"):
            remains.unlink()
    with replacing(path) as new:
        try:
            SqlAlchemyStore(f"{SQLITE}{new}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)
        finally:  # MLflow keeps the engine of every store
            engine = SqlAlchemyStore._engine_map.pop(f"{SQLITE}{new}", None)
            if engine is not None:
                engine.dispose()
