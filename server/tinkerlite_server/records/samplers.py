"""Samplers: sampling sessions, which fix what is sampled from."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from tinkerlite_server.errors import UnknownName
from tinkerlite_server.records.access import Access
from tinkerlite_server.records.sessions import has_ended
from tinkerlite_server.tables import SamplerRow, SessionRow

_REMEMBERED = 1024
_NEWER_WEIGHTS = (
    "the run has since handed over newer weights, and keeps only the last few. "
    "Save weights that you want to keep with save_weights_for_sampler(name)"
)


class Samplers(Access):
    """The table of sampling sessions, with those in use at hand.

    Every sample asks for its own, and a query costs half of what its request does.
    """

    def __init__(self, database: Engine, clock: Callable[[], float]) -> None:
        super().__init__(database, clock)
        self._remembering = threading.Lock()
        self._live: OrderedDict[str, SamplerRow] = OrderedDict()
        self._endings = 0

    def add_sampler(self, row: SamplerRow) -> None:
        """A new live sampling session.

        Raises:
            Gone: its session has ended, and would never end this.
        """
        with self._writing() as db:
            db.add(row)
            # Written first: from here on nobody else writes, so what is read next stands.
            db.flush()
            session = db.get(SessionRow, row.session_id)
            if session is not None and session.ended:
                raise has_ended(session)

    def find_sampler(self, sampler_id: str) -> SamplerRow | None:
        """The sampling session of this id, whoever owns it."""
        with self._reading() as db:
            return db.get(SamplerRow, sampler_id)

    def sampler(self, sampler_id: str, owner: str) -> SamplerRow:
        """The sampling session of this id.

        Raises:
            UnknownName: there is none of this owner's.
        """
        return self._owned(SamplerRow, sampler_id, owner, "sampling session")

    def live_sampler(self, sampler_id: str, owner: str) -> SamplerRow:
        """The same, and its weights are at hand.

        Raises:
            UnknownName: there is none of this owner's, or it has ended.
        """
        row = self._live.get(sampler_id)
        if row is not None and row.owner == owner:
            return row
        endings = self._endings
        row = self.sampler(sampler_id, owner)
        if row.ended:
            raise UnknownName(f"sampling session {sampler_id!r} has ended: {row.ended}")
        with self._remembering:
            if endings == self._endings:
                self._live[sampler_id] = row
                if len(self._live) > _REMEMBERED:
                    self._live.popitem(last=False)
        return row

    def join_sampler(self, sampler_id: str) -> int:
        """Number one more client of a sampling session: 1, 2, ...; the one that made it is 0."""
        with self._writing() as db:
            joined = update(SamplerRow).where(SamplerRow.id == sampler_id)
            db.execute(joined.values(clones=SamplerRow.clones + 1))
            return db.scalars(select(SamplerRow.clones).where(SamplerRow.id == sampler_id)).one()

    def samplers_of(self, session_id: str) -> list[str]:
        """Ids of a session's sampling sessions."""
        with self._reading() as db:
            return list(db.scalars(select(SamplerRow.id).where(SamplerRow.session_id == session_id)))

    def end_samplers_of_snapshot(self, adapter_id: str) -> None:
        """An unnamed snapshot had to go for newer ones, and with it whatever samples from it."""
        with self._ending_samplers() as db:
            live = SamplerRow.ended.is_(None)
            db.execute(
                update(SamplerRow)
                .where(SamplerRow.adapter_id == adapter_id, live)
                .values(ended=_NEWER_WEIGHTS)
            )

    @contextmanager
    def _ending_samplers(self) -> Iterator[Session]:
        """Around what ends sampling sessions: none of them is remembered as live afterwards."""
        with self._writing() as db:
            yield db
        with self._remembering:
            self._endings += 1
            self._live.clear()
