"""Store: what outlives a request, in SQLite: sessions, runs, sampling sessions, checkpoints.

Rows only: weights are in folders (`checkpoint_folders.py`), and what is queued or running is in
memory elsewhere. Every reading method takes the owner who asks; what belongs to someone else
is, to them, not there, unless it is a checkpoint that was made public.

Safe from any thread.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, delete, func, or_, select, update
from sqlalchemy.orm import Session

from tinkerlite.types import CHECKPOINT_TYPES
from tinkerlite_server.engine.protocols import AdapterConfig
from tinkerlite_server.errors import BadRequest, Gone, UnknownName
from tinkerlite_server.schema import lock_folder, open_database
from tinkerlite_server.tables import Base, CheckpointRow, RunRow, SamplerRow, SessionRow

_REMEMBERED_SAMPLERS = 1024

Row = TypeVar("Row", SessionRow, RunRow, SamplerRow, CheckpointRow)
Mortal = TypeVar("Mortal", RunRow, SamplerRow)


class Store:
    """The tables, in the file `metadata.sqlite` of a folder that one server at a time uses.

    Raises:
        FolderInUse: another server is running on this folder.
    """

    def __init__(self, data_dir: Path, *, clock: Callable[[], float] = time.time) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(data_dir)
        self._clock = clock
        self._engine = open_database(data_dir)
        # Every sample asks for its sampling session, and a query costs half of what its request does.
        self._remembering = threading.Lock()
        self._live_samplers: OrderedDict[str, SamplerRow] = OrderedDict()
        self._endings = 0

    def close(self) -> None:
        """Give up the file."""
        self._engine.dispose()
        self._lock.close()

    # ---- sessions ----

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
            raise Gone(f"session {session_id!r} has ended: {row.ended}. Make a new ServiceClient.")
        return row

    def live_session_ids(self) -> list[str]:
        """Sessions that have not ended, of every owner."""
        with self._reading() as db:
            return list(db.scalars(select(SessionRow.id).where(SessionRow.ended.is_(None))))

    def list_sessions(self, owner: str, *, limit: int, offset: int) -> list[str]:
        """Ids, newest first."""
        query = select(SessionRow.id).where(SessionRow.owner == owner).order_by(*_NEWEST_SESSION)
        with self._reading() as db:
            return list(db.scalars(query.limit(limit).offset(offset)))

    def search_sessions(
        self, owner: str, matches: Callable[[SessionRow], bool], *, not_after: float | None, limit: int
    ) -> list[SessionRow]:
        """The newest sessions that match, of those made at `not_after` or earlier."""
        query = select(SessionRow).where(SessionRow.owner == owner).order_by(*_NEWEST_SESSION)
        if not_after is not None:
            query = query.where(SessionRow.created <= not_after)
        with self._reading() as db:
            rows = db.scalars(query.execution_options(yield_per=200))
            return list(islice(filter(matches, rows), limit))

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

    def set_session_project(self, session_id: str, project_id: str | None) -> None:
        """Label a session, or take its label off."""
        self._update(SessionRow, session_id, project_id=project_id)

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

    # ---- runs ----

    def add_run(
        self,
        model_id: str,
        *,
        session_id: str,
        owner: str,
        base_model: str,
        adapter: AdapterConfig,
        user_metadata: dict[str, Any],
    ) -> None:
        """A new live run."""
        now = self._clock()
        with self._writing() as db:
            db.add(
                RunRow(
                    id=model_id,
                    session_id=session_id,
                    owner=owner,
                    base_model=base_model,
                    adapter=asdict(adapter),
                    created=now,
                    last_request=now,
                    ended=None,
                    user_metadata=user_metadata,
                )
            )

    def run(self, model_id: str, owner: str) -> RunRow:
        """The training run of this id, live or not.

        Raises:
            UnknownName: there is none of this owner's.
        """
        return self._owned(RunRow, model_id, owner, "model")

    def readable_run(self, model_id: str, owner: str) -> RunRow:
        """The training run of this id: one's own, or one with a public checkpoint.

        Raises:
            UnknownName: there is none.
        """
        row = self.find_run(model_id)
        if row is not None and row.owner != owner:
            public = select(CheckpointRow.id).where(CheckpointRow.run_id == model_id, self._readable(owner))
            with self._reading() as db:
                row = row if db.scalar(public.limit(1)) else None
        if row is None:
            raise UnknownName(f"there is no model {model_id!r} for this API key")
        return row

    def live_run(self, model_id: str, owner: str) -> RunRow:
        """The training run of this id, which is in memory.

        Raises:
            UnknownName: there is none of this owner's, or it has ended.
        """
        row = self.run(model_id, owner)
        if row.ended:
            saved = self.last_checkpoint(model_id, "weights", owner)
            rest = f"its last checkpoint is {saved.path}" if saved else "it was never saved"
            raise UnknownName(
                f"training run {model_id!r} has ended: {row.ended}; {rest}. "
                "Go on from a checkpoint with create_training_client_from_state_with_optimizer()."
            )
        return row

    def find_run(self, model_id: str) -> RunRow | None:
        """The training run of this id, whoever owns it."""
        with self._reading() as db:
            return db.get(RunRow, model_id)

    def list_runs(
        self, owner: str, *, limit: int, offset: int, others: bool = False, project_id: str | None = None
    ) -> tuple[list[RunRow], int]:
        """A page of runs, the latest used first, and how many there are.

        Args:
            others: whether to list those of other owners that have a public checkpoint, too.
            project_id: only those whose session has this label.
        """
        where = RunRow.owner == owner
        if others:
            where = where | RunRow.id.in_(select(CheckpointRow.run_id).where(self._readable(owner)))
        if project_id is not None:
            labelled = select(SessionRow.id).where(SessionRow.project_id == project_id)
            where = where & RunRow.session_id.in_(labelled)
        return self._page(RunRow, where, RunRow.last_request.desc(), limit, offset)

    def runs_of(self, session_id: str) -> list[str]:
        """Ids of a session's runs."""
        with self._reading() as db:
            return list(db.scalars(select(RunRow.id).where(RunRow.session_id == session_id)))

    def end_run(self, model_id: str, reason: str) -> None:
        """The run is no longer in memory."""
        self._update(RunRow, model_id, ended=reason)

    def delete_run(self, model_id: str) -> None:
        """Forget a run that never came to be."""
        with self._writing() as db:
            db.execute(delete(RunRow).where(RunRow.id == model_id))

    def set_run_adapter(self, model_id: str, adapter: AdapterConfig) -> None:
        """The run's weights were replaced by those of another adapter."""
        self._update(RunRow, model_id, adapter=asdict(adapter))

    def touch_runs(self, used: Mapping[str, float]) -> None:
        """When runs were last asked for something."""
        with self._writing() as db:
            for model_id, at in used.items():
                db.execute(update(RunRow).where(RunRow.id == model_id).values(last_request=at))

    # ---- sampling sessions ----

    def add_sampler(self, row: SamplerRow) -> None:
        """A new live sampling session."""
        with self._writing() as db:
            db.add(row)

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
        row = self._live_samplers.get(sampler_id)
        if row is not None and row.owner == owner:
            return row
        endings = self._endings
        row = self.sampler(sampler_id, owner)
        if row.ended:
            raise UnknownName(f"sampling session {sampler_id!r} has ended: {row.ended}")
        with self._remembering:
            if endings == self._endings:
                self._live_samplers[sampler_id] = row
                if len(self._live_samplers) > _REMEMBERED_SAMPLERS:
                    self._live_samplers.popitem(last=False)
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

    def end_samplers_of_adapter(self, adapter_id: str, reason: str) -> None:
        """The adapter is gone, and with it whatever samples from it."""
        with self._ending_samplers() as db:
            live = SamplerRow.ended.is_(None)
            db.execute(
                update(SamplerRow).where(SamplerRow.adapter_id == adapter_id, live).values(ended=reason)
            )

    # ---- checkpoints ----

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
            if db.get(CheckpointRow, source.id) is None:
                raise UnknownName(f"{source.path} was deleted before it could be copied")
            db.add_all([run, copy])
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

    # ---- upkeep ----

    def recover(self, reason: str) -> None:
        """After a start: what was in memory before it has ended."""
        with self._ending_samplers() as db:
            db.execute(update(RunRow).where(RunRow.ended.is_(None)).values(ended=reason))
            snapshots = SamplerRow.adapter_id.is_not(None) & SamplerRow.folder.is_(None)
            db.execute(update(SamplerRow).where(SamplerRow.ended.is_(None), snapshots).values(ended=reason))

    def drop_expired_checkpoints(self) -> None:
        """Forget checkpoints whose time is over."""
        with self._writing() as db:
            db.execute(delete(CheckpointRow).where(CheckpointRow.expires <= self._clock()))

    def folders_in_use(self) -> set[str]:
        """Checkpoint folders that a checkpoint or a live sampling session needs."""
        live = SamplerRow.ended.is_(None) & SamplerRow.folder.is_not(None)
        with self._reading() as db:
            named = set(db.scalars(select(CheckpointRow.folder)))
            return named | {folder for folder in db.scalars(select(SamplerRow.folder).where(live)) if folder}

    # ---- common ----

    def _unexpired(self) -> ColumnElement[bool]:
        return or_(CheckpointRow.expires.is_(None), CheckpointRow.expires > self._clock())

    def _readable(self, owner: str) -> ColumnElement[bool]:
        return or_(CheckpointRow.owner == owner, CheckpointRow.public) & self._unexpired()

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
        with Session(self._engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def _ending_samplers(self) -> Iterator[Session]:
        """Around what ends sampling sessions: none of them is remembered as live afterwards."""
        with self._writing() as db:
            yield db
        with self._remembering:
            self._endings += 1
            self._live_samplers.clear()

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session


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


_NEWEST_SESSION = (SessionRow.created.desc(), SessionRow.id.desc())


def _named(run_id: str, kind: str, name: str) -> tuple[Any, ...]:
    return CheckpointRow.run_id == run_id, CheckpointRow.kind == kind, CheckpointRow.name == name


def _live_of(db: Session, kind: type[Mortal], session_id: str) -> list[Mortal]:
    return list(db.scalars(select(kind).where(kind.session_id == session_id, kind.ended.is_(None))))
