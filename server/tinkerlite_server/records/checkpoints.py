"""Checkpoints: saved weights under their paths; the files are in folders elsewhere."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import ColumnElement, delete, func, or_, select

from tinkerlite.types import CHECKPOINT_TYPES
from tinkerlite_server.errors import BadRequest, UnknownName
from tinkerlite_server.records.access import Access
from tinkerlite_server.tables import CheckpointRow, RunRow


class Checkpoints(Access):
    """The table of checkpoints. One that has expired is not there, swept or not."""

    def put_checkpoint(
        self,
        run: RunRow,
        *,
        kind: str,
        name: str,
        folder: str,
        size_bytes: int,
        ttl_seconds: int | None,
        user_metadata: Mapping[str, str],
    ) -> CheckpointRow:
        """A checkpoint of a run; it takes the place of one with the same kind and name."""
        now = self._clock()
        row = CheckpointRow(
            id=f"ckpt-{secrets.token_hex(8)}",
            run_id=run.id,
            owner=run.owner,
            kind=kind,
            name=name,
            base_model=run.base_model,
            adapter=run.adapter,
            folder=folder,
            size_bytes=size_bytes,
            created=now,
            expires=None if ttl_seconds is None else now + ttl_seconds,
            user_metadata=dict(user_metadata),
        )
        with self._writing() as db:
            db.execute(delete(CheckpointRow).where(*_named(run.id, kind, name)))
            db.add(row)
        return row

    def copy_checkpoint(
        self, source: CheckpointRow, run_id: str, owner: str, ttl_seconds: int | None
    ) -> CheckpointRow:
        """A checkpoint that shares the folder of another, in a new run that is not in memory.

        Raises:
            UnknownName: the other has just gone.
        """
        now = self._clock()
        run = RunRow(
            id=run_id,
            session_id=run_id.partition(":")[0],
            owner=owner,
            base_model=source.base_model,
            adapter=source.adapter,
            created=now,
            last_request=now,
            ended=f"it only holds a copy of {source.path}",
            user_metadata={},
        )
        copy = CheckpointRow(
            id=f"ckpt-{secrets.token_hex(8)}",
            run_id=run_id,
            owner=owner,
            kind=source.kind,
            name=source.name,
            base_model=source.base_model,
            adapter=source.adapter,
            folder=source.folder,
            size_bytes=source.size_bytes,
            created=now,
            expires=None if ttl_seconds is None else now + ttl_seconds,
            user_metadata=source.user_metadata,
        )
        with self._writing() as db:
            db.add_all([run, copy])
            # Written first: from here on nobody else writes, so the folder stays.
            db.flush()
            if db.get(CheckpointRow, source.id) is None:
                raise UnknownName(f"{source.path} was deleted before it could be copied")
        return copy

    def find_checkpoint(self, run_id: str, kind: str, name: str, owner: str) -> CheckpointRow | None:
        """The checkpoint under this path, unless it expired or is someone else's and not public."""
        with self._reading() as db:
            return db.scalar(select(CheckpointRow).where(*_named(run_id, kind, name), self._readable(owner)))

    def checkpoint(self, path: str, owner: str) -> CheckpointRow:
        """The checkpoint under a tinker:// path, to read: one's own, or a public one.

        Raises:
            BadRequest: that is not such a path.
            UnknownName: there is none.
        """
        row = self.find_checkpoint(*split_path(path), owner)
        if row is None:
            raise UnknownName(f"there is no checkpoint {path!r} for this API key; it may have expired")
        return row

    def own_checkpoint(self, path: str, owner: str) -> CheckpointRow:
        """The checkpoint under a tinker:// path, to change.

        Raises:
            BadRequest: that is not such a path.
            UnknownName: there is none of this owner's.
        """
        row = self.checkpoint(path, owner)
        if row.owner != owner:
            raise UnknownName(f"{path!r} is public, but it is someone else's; only its owner may change it")
        return row

    def checkpoint_by_id(self, checkpoint_id: str) -> CheckpointRow | None:
        """The checkpoint of this internal id, unless it expired."""
        with self._reading() as db:
            return db.scalar(
                select(CheckpointRow).where(CheckpointRow.id == checkpoint_id, self._unexpired())
            )

    def last_checkpoint(self, run_id: str, kind: str, owner: str) -> CheckpointRow | None:
        """The newest of a run, of one kind."""
        query = select(CheckpointRow).where(
            CheckpointRow.run_id == run_id, CheckpointRow.kind == kind, self._readable(owner)
        )
        with self._reading() as db:
            return db.scalar(query.order_by(CheckpointRow.created.desc()).limit(1))

    def list_checkpoints(
        self, owner: str, *, run_id: str | None = None, limit: int, offset: int
    ) -> tuple[list[CheckpointRow], int]:
        """A page of checkpoints, the newest first, and how many there are.

        One's own; of a run that is named also those of someone else that are public.
        """
        where = self._unexpired() & (CheckpointRow.owner == owner)
        if run_id is not None:
            where = self._readable(owner) & (CheckpointRow.run_id == run_id)
        return self._page(CheckpointRow, where, CheckpointRow.created.desc(), limit, offset)

    def checkpoint_totals(self, session_ids: Collection[str]) -> dict[str, tuple[int, int]]:
        """Of each session that has any: how many checkpoints its runs saved, and their bytes."""
        query = (
            select(RunRow.session_id, func.count(), func.sum(CheckpointRow.size_bytes))
            .join(CheckpointRow, CheckpointRow.run_id == RunRow.id)
            .where(RunRow.session_id.in_(session_ids), self._unexpired())
            .group_by(RunRow.session_id)
        )
        with self._reading() as db:
            return {session_id: (count, size) for session_id, count, size in db.execute(query)}

    def delete_checkpoint(self, checkpoint_id: str) -> None:
        """Forget a checkpoint; its folder goes once nothing samples from it."""
        with self._writing() as db:
            db.execute(delete(CheckpointRow).where(CheckpointRow.id == checkpoint_id))

    def set_checkpoint_public(self, checkpoint_id: str, *, public: bool) -> None:
        """Let every owner read a checkpoint, or its own alone."""
        self._update(CheckpointRow, checkpoint_id, public=public)

    def set_checkpoint_ttl(self, checkpoint_id: str, ttl_seconds: int | None) -> None:
        """Let a checkpoint expire that long from now, or (None) never."""
        expires = None if ttl_seconds is None else self._clock() + ttl_seconds
        self._update(CheckpointRow, checkpoint_id, expires=expires)

    def drop_expired_checkpoints(self) -> None:
        """Forget checkpoints whose time is over."""
        with self._writing() as db:
            db.execute(delete(CheckpointRow).where(CheckpointRow.expires <= self._clock()))

    def _unexpired(self) -> ColumnElement[bool]:
        return or_(CheckpointRow.expires.is_(None), CheckpointRow.expires > self._clock())

    def _readable(self, owner: str) -> ColumnElement[bool]:
        return or_(CheckpointRow.owner == owner, CheckpointRow.public) & self._unexpired()


def split_path(path: str) -> tuple[str, str, str]:
    """Run id, kind and name of a tinker:// path.

    Raises:
        BadRequest: it has another form.
    """
    scheme, _, rest = path.partition("://")
    parts = rest.split("/")
    kinds = sorted(CHECKPOINT_TYPES)
    if scheme != "tinker" or len(parts) != 3 or parts[1] not in kinds or not all(parts):
        raise BadRequest(
            f"{path!r} is not a checkpoint path: tinker://RUN/KIND/NAME, where KIND is one of {kinds}"
        )
    return parts[0], parts[1], parts[2]


def _named(run_id: str, kind: str, name: str) -> tuple[Any, ...]:
    return CheckpointRow.run_id == run_id, CheckpointRow.kind == kind, CheckpointRow.name == name
