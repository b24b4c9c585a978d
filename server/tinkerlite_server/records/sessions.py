"""Sessions: client processes, while they live and after."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

from sqlalchemy import select

from tinkerlite_server.errors import Gone
from tinkerlite_server.records.access import Access
from tinkerlite_server.tables import SessionRow

_NEWEST = (SessionRow.created.desc(), SessionRow.id.desc())


class Sessions(Access):
    """The table of sessions."""

    def add_session(
        self,
        session_id: str,
        owner: str,
        *,
        tags: list[str],
        user_metadata: dict[str, Any],
        display_name: str | None = None,
        project_id: str | None = None,
    ) -> None:
        """A new live session."""
        with self._writing() as db:
            db.add(
                SessionRow(
                    id=session_id,
                    owner=owner,
                    created=self._clock(),
                    ended=None,
                    tags=tags,
                    user_metadata=user_metadata,
                    display_name=display_name,
                    project_id=project_id,
                )
            )

    def add_finished_session(self, session_id: str, owner: str, *, project_id: str) -> None:
        """A session that was over at once, to file something under; if it is there, nothing happens."""
        row = SessionRow(
            id=session_id,
            owner=owner,
            created=self._clock(),
            ended="it only holds a copy",
            tags=[],
            user_metadata={},
            display_name=None,
            project_id=project_id,
        )
        with self._writing() as db:
            if db.get(SessionRow, session_id) is None:
                db.add(row)

    def session(self, session_id: str, owner: str) -> SessionRow:
        """The session of this id.

        Raises:
            UnknownName: there is none of this owner's.
        """
        return self._owned(SessionRow, session_id, owner, "session")

    def live_session(self, session_id: str, owner: str) -> SessionRow:
        """The same, and it goes on.

        Raises:
            Gone: it has ended.
        """
        row = self.session(session_id, owner)
        if row.ended:
            raise has_ended(row)
        return row

    def live_session_ids(self) -> list[str]:
        """Sessions that have not ended, of every owner."""
        with self._reading() as db:
            return list(db.scalars(select(SessionRow.id).where(SessionRow.ended.is_(None))))

    def list_sessions(self, owner: str, *, limit: int, offset: int) -> list[str]:
        """Ids, newest first."""
        query = select(SessionRow.id).where(SessionRow.owner == owner).order_by(*_NEWEST)
        with self._reading() as db:
            return list(db.scalars(query.limit(limit).offset(offset)))

    def search_sessions(
        self, owner: str, matches: Callable[[SessionRow], bool], *, not_after: float | None, limit: int
    ) -> list[SessionRow]:
        """The newest sessions that match, of those made at `not_after` or earlier."""
        query = select(SessionRow).where(SessionRow.owner == owner).order_by(*_NEWEST)
        if not_after is not None:
            query = query.where(SessionRow.created <= not_after)
        with self._reading() as db:
            rows = db.scalars(query.execution_options(yield_per=200))
            return list(islice(filter(matches, rows), limit))

    def set_session_project(self, session_id: str, project_id: str | None) -> None:
        """Label a session, or take its label off."""
        self._update(SessionRow, session_id, project_id=project_id)


def has_ended(session: SessionRow) -> Gone:
    """What a client is told that asks for more in a session that is over."""
    return Gone(f"session {session.id!r} has ended: {session.ended}. Make a new ServiceClient.")
