"""Store: what outlives a request, in SQLite: sessions, runs, sampling sessions, checkpoints.

Rows only: weights are in folders (`checkpoint_folders.py`), and what is queued or running is in
memory elsewhere. Each table has its module in `records/`; here is what concerns several. Every
reading method takes the owner who asks; what belongs to someone else is, to them, not there, unless
it is a checkpoint that was made public.

Safe from any thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from tinkerlite_server.records.runs import Runs
from tinkerlite_server.records.samplers import Samplers
from tinkerlite_server.records.sessions import Sessions
from tinkerlite_server.schema import lock_folder, open_database
from tinkerlite_server.tables import CheckpointRow, RunRow, SamplerRow, SessionRow

Mortal = TypeVar("Mortal", RunRow, SamplerRow)


class Store(Sessions, Runs, Samplers):
    """The tables, in the file `metadata.sqlite` of a folder that one server at a time uses.

    Raises:
        FolderInUse: another server is running on this folder.
    """

    def __init__(self, data_dir: Path, *, clock: Callable[[], float] = time.time) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(data_dir)
        super().__init__(open_database(data_dir), clock)

    def close(self) -> None:
        """Give up the file."""
        self._database.dispose()
        self._lock.close()

    def end_session(
        self, session_id: str, reason: str, *, finish: tuple[str, str | None] | None = None
    ) -> tuple[list[str], list[SamplerRow]]:
        """End a session with its runs and sampling sessions; return those that were live until now.

        The first reason stands: ending a session again does nothing.

        Args:
            finish: what its client reported, and details; None if something else ended it.
        """
        with self._ending_samplers() as db:
            session = db.get(SessionRow, session_id)
            if session is None or session.ended:
                return [], []
            session.ended = reason
            if finish is not None:
                session.finish_reason, session.finish_detail = finish
            runs = _live_of(db, RunRow, session_id)
            samplers = _live_of(db, SamplerRow, session_id)
            for row in (*runs, *samplers):
                row.ended = reason
            return [run.id for run in runs], samplers

    def recover(self, reason: str) -> None:
        """After a start: what was in memory before it has ended."""
        with self._ending_samplers() as db:
            db.execute(update(RunRow).where(RunRow.ended.is_(None)).values(ended=reason))
            snapshots = SamplerRow.adapter_id.is_not(None) & SamplerRow.folder.is_(None)
            db.execute(update(SamplerRow).where(SamplerRow.ended.is_(None), snapshots).values(ended=reason))

    def folders_in_use(self) -> set[str]:
        """Checkpoint folders that a checkpoint or a live sampling session needs."""
        live = SamplerRow.ended.is_(None) & SamplerRow.folder.is_not(None)
        with self._reading() as db:
            named = set(db.scalars(select(CheckpointRow.folder)))
            return named | {folder for folder in db.scalars(select(SamplerRow.folder).where(live)) if folder}


def _live_of(db: Session, kind: type[Mortal], session_id: str) -> list[Mortal]:
    return list(db.scalars(select(kind).where(kind.session_id == session_id, kind.ended.is_(None))))
