"""Tables of the metadata: their rows, and nothing that reads or writes them.

Times are seconds since 1970, UTC. A null `ended` means that the thing is still alive. A column that is
added to a table later is nullable or has a server default, so that `schema.py` can add it to files that
exist.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tinkerlite_server.engine.protocols import AdapterConfig


class Base(DeclarativeBase):
    """What the tables have in common."""

    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON}  # noqa: RUF012 (SQLAlchemy reads it)


class SessionRow(Base):
    """One client process. `ended` says why, once it has."""

    __tablename__ = "sessions"
    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(index=True)
    created: Mapped[float]
    ended: Mapped[str | None]
    tags: Mapped[list[str]]
    user_metadata: Mapped[dict[str, Any]]
    display_name: Mapped[str | None]
    project_id: Mapped[str | None]
    """A label to find the session by; there is nothing behind it here."""
    finish_reason: Mapped[str | None]
    """What its client reported when it was done; null if it never did."""
    finish_detail: Mapped[str | None]


class RunRow(Base):
    """A training run; its id is the model id. While `ended` is null it is in memory."""

    __tablename__ = "runs"
    id: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[str] = mapped_column(index=True)
    owner: Mapped[str] = mapped_column(index=True)
    base_model: Mapped[str]
    adapter: Mapped[dict[str, Any] | None] = mapped_column(JSON, nullable=False)
    """JSON's null, which is not SQL's, where all weights are trained."""
    created: Mapped[float]
    last_request: Mapped[float]
    ended: Mapped[str | None]
    user_metadata: Mapped[dict[str, Any]]

    @property
    def adapter_config(self) -> AdapterConfig | None:
        """The adapter as the engine knows it; None where all weights are trained."""
        return None if self.adapter is None else AdapterConfig(**self.adapter)


class SamplerRow(Base):
    """A sampling session: fixed weights under an id. Without `adapter_id` it is the base model."""

    __tablename__ = "samplers"
    id: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[str] = mapped_column(index=True)
    owner: Mapped[str] = mapped_column(index=True)
    base_model: Mapped[str]
    model_path: Mapped[str | None]
    adapter_id: Mapped[str | None]
    folder: Mapped[str | None]
    """The checkpoint folder that the adapter is read from; null for a snapshot, which is in memory only."""
    ended: Mapped[str | None]
    clones: Mapped[int] = mapped_column(default=0, server_default="0")
    """Clients that joined it after the one that made it."""


class CheckpointRow(Base):
    """Weights in a folder, under a path of the form tinker://RUN/KIND/NAME."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("run_id", "kind", "name"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(index=True)
    owner: Mapped[str] = mapped_column(index=True)
    kind: Mapped[str]
    name: Mapped[str]
    base_model: Mapped[str]
    adapter: Mapped[dict[str, Any] | None] = mapped_column(JSON, nullable=False)
    """As its run's."""
    folder: Mapped[str]
    size_bytes: Mapped[int]
    created: Mapped[float]
    expires: Mapped[float | None]
    user_metadata: Mapped[dict[str, Any]]
    public: Mapped[bool] = mapped_column(default=False, server_default="0")
    """Whether every owner may read it, and load and sample from it."""

    @property
    def path(self) -> str:
        """The path that names it everywhere."""
        return f"tinker://{self.run_id}/{self.kind}/{self.name}"

    @property
    def adapter_config(self) -> AdapterConfig | None:
        """The adapter as the engine knows it; None where all weights are trained."""
        return None if self.adapter is None else AdapterConfig(**self.adapter)
