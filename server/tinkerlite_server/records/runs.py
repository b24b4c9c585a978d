"""Runs: training runs, in memory and over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import delete, select, update

from tinkerlite_server.engine.protocols import AdapterConfig
from tinkerlite_server.errors import UnknownName
from tinkerlite_server.records.checkpoints import Checkpoints
from tinkerlite_server.tables import CheckpointRow, RunRow, SessionRow


class Runs(Checkpoints):
    """The table of runs. A run is known to others by its public checkpoints, and survived by all."""

    def add_run(
        self,
        model_id: str,
        *,
        session_id: str,
        owner: str,
        base_model: str,
        adapter: AdapterConfig | None,
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
                    adapter=None if adapter is None else asdict(adapter),
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

    def set_run_adapter(self, model_id: str, adapter: AdapterConfig | None) -> None:
        """The run's weights were replaced by others."""
        self._update(RunRow, model_id, adapter=None if adapter is None else asdict(adapter))

    def touch_runs(self, used: Mapping[str, float]) -> None:
        """When runs were last asked for something."""
        with self._writing() as db:
            for model_id, at in used.items():
                db.execute(update(RunRow).where(RunRow.id == model_id).values(last_request=at))
