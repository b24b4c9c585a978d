"""Access: how rows are read and written, one transaction at a time. Knows no table in particular."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from tinkerlite_server.errors import UnknownName
from tinkerlite_server.tables import Base, CheckpointRow, RunRow, SamplerRow, SessionRow

Row = TypeVar("Row", SessionRow, RunRow, SamplerRow, CheckpointRow)


class Access:
    """A database, and the time. Safe from any thread."""

    def __init__(self, database: Engine, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def _owned(self, kind: type[Row], row_id: str, owner: str, noun: str) -> Row:
        with self._reading() as db:
            row = db.get(kind, row_id)
        if row is None or row.owner != owner:
            raise UnknownName(f"there is no {noun} {row_id!r} for this API key")
        return row

    def _update(self, kind: type[Base], row_id: str, **values: Any) -> None:
        with self._writing() as db:
            row = db.get(kind, row_id)
            if row is not None:
                for name, value in values.items():
                    setattr(row, name, value)

    def _page(
        self, kind: type[Row], where: Any, order: Any, limit: int, offset: int
    ) -> tuple[list[Row], int]:
        with self._reading() as db:
            rows = list(db.scalars(select(kind).where(where).order_by(order).limit(limit).offset(offset)))
            count = db.scalar(select(func.count()).select_from(kind).where(where)) or 0
        return rows, count

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with Session(self._database, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        with Session(self._database, expire_on_commit=False) as session, session.begin():
            yield session
