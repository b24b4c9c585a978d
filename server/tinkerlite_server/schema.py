"""The metadata's file: who may open it, how, and how one of an earlier release gains what it lacks."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, inspect, text
from sqlalchemy.schema import CreateColumn

from tinkerlite_server.errors import ServerError
from tinkerlite_server.tables import Base


class FolderInUse(ServerError):
    """Another server is running on this data folder."""


def open_database(data_dir: Path) -> Engine:
    """The tables in `metadata.sqlite` of a folder, made or brought up to date where needed."""
    engine = create_engine(f"sqlite:///{data_dir / 'metadata.sqlite'}")
    event.listen(engine, "connect", _configure)
    Base.metadata.create_all(engine)
    _add_missing_columns(engine)
    return engine


def lock_folder(data_dir: Path) -> sqlite3.Connection:
    """SQLite's own lock on a file of its own: portable, and let go of when the process ends, however.

    Raises:
        FolderInUse: another server is running on this folder.
    """
    lock = sqlite3.connect(data_dir / "lock.sqlite", timeout=0, isolation_level=None, check_same_thread=False)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        lock.close()
        raise FolderInUse(
            f"another server is using {str(data_dir)!r}; stop it, or name another folder "
            "(tinkerlite serve: --data-dir; local://: TINKERLITE_DATA_DIR)"
        ) from error
    return lock


def _configure(connection: Any, _record: Any) -> None:
    """Readers do not wait for the writer; a commit survives a crash of the machine."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _add_missing_columns(engine: Engine) -> None:
    """Columns that the tables gained since the file was written; each is nullable or has a default."""
    known = inspect(engine)
    with engine.begin() as db:
        for table in Base.metadata.sorted_tables:
            present = {column["name"] for column in known.get_columns(table.name)}
            for column in table.columns:
                if column.name not in present:
                    added = CreateColumn(column).compile(engine)
                    db.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {added}"))
