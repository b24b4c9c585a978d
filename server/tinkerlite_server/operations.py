"""Operations: what a training run is asked to do, in the order of its `seq_id`s.

Plain data without behaviour, so that a journal can keep them and an executor can be tested
without a queue. Nothing here knows HTTP or torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tinkerlite.types import AdamParams
from tinkerlite_server.engine.protocols import AdapterConfig, SampleWork, TrainBatch

SavedKind = Literal["weights", "sampler_weights", "external_weights"]
"""The middle segment of a checkpoint's path: to train on from, to sample from, or to take elsewhere."""


UNNUMBERED = -1
"""The `seq_id` of an operation that was sent without one; it takes the next free number."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Operation:
    """Something one training run is asked to do."""

    request_id: str
    model_id: str
    seq_id: int
    """From 1; what makes the run has 0."""


@dataclass(frozen=True, eq=False, kw_only=True)
class CreateRun(Operation):
    """Make the run, from a fresh adapter, or (None) to train all weights."""

    base_model: str
    adapter: AdapterConfig | None


@dataclass(frozen=True, eq=False, kw_only=True)
class LoadRun(Operation):
    """Make the run from a checkpoint (seq_id 0), or replace its weights by those of one."""

    base_model: str
    path: str
    checkpoint_id: str
    optimizer: bool


@dataclass(frozen=True, eq=False, kw_only=True)
class ForwardBackward(Operation):
    """Add the gradients of a batch, or (`batch.forward_only`) only look at it."""

    batch: TrainBatch


@dataclass(frozen=True, eq=False, kw_only=True)
class OptimStep(Operation):
    """Step on the accumulated gradients, then zero them."""

    params: AdamParams


@dataclass(frozen=True, eq=False, kw_only=True)
class Save(Operation):
    """Write a checkpoint under a name."""

    kind: SavedKind
    name: str
    ttl_seconds: int | None = None
    overwrite: bool = False
    user_metadata: Mapping[str, str] | None = None
    recipients: tuple[str, ...] = ()
    """Public keys to encrypt the files for; none: they stay plain."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Snapshot(Operation):
    """Hand a copy of the weights to the sampler, under a sampling session of its own."""

    sampling_session_id: str


@dataclass(frozen=True, eq=False, kw_only=True)
class UnloadRun(Operation):
    """Free the run."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """A sample request: no order, no run; `work.key` is its request id."""

    owner: str
    work: SampleWork
    folder: str | None
    """The checkpoint folder to read the adapter from, if need be; None for a snapshot or the base model."""
    session_id: str | None = None
    """The session that it ends with, if it belongs to one."""

    @property
    def request_id(self) -> str:
        """The future that waits for it."""
        return self.work.key


@dataclass(frozen=True, eq=False, kw_only=True)
class Refusal:
    """A request that was turned down although it had a number: later ones must not wait for it."""

    model_id: str
    seq_id: int
    reason: str
    loses_gradients: bool
    """Whether gradients are now missing that the caller may believe are there."""


@dataclass(frozen=True, eq=False)
class LostGradients:
    """Why a run's accumulated gradients are not all they should be."""

    reason: str
    category: Literal["user", "server", "unknown"] = field(default="user")
