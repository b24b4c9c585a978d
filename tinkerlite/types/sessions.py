"""Searching for sessions: what is asked, and what comes back."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from tinkerlite.types.inputs import Params
from tinkerlite.types.service import Response

ClientSessionFinishReasonType = Literal["success", "errored", "interrupted"]


# ---- the question ----


class OwnSearchOwner(Params):
    """The caller's own sessions."""

    type: Literal["own"] = "own"


class AccessibleSearchOwner(Params):
    """All sessions that the caller may see."""

    type: Literal["accessible"] = "accessible"


class UserSearchOwner(Params):
    """Those of named users."""

    type: Literal["user"] = "user"
    owner_urns: list[str] = Field(min_length=1, max_length=10)


class ActiveSessionStatusQuery(Params):
    """Sessions that go on."""

    type: Literal["active"] = "active"


class CancelledSessionStatusQuery(Params):
    """Sessions that were cancelled."""

    type: Literal["cancelled"] = "cancelled"


class FailedSessionStatusQuery(Params):
    """Sessions that failed."""

    type: Literal["failed"] = "failed"


class ClientFinishedSessionStatusQuery(Params):
    """Sessions that their clients ended, for any of these reasons; absent, for any at all."""

    type: Literal["client_finished"] = "client_finished"
    reasons: list[ClientSessionFinishReasonType] | None = Field(default=None, min_length=1)


SearchOwner = OwnSearchOwner | AccessibleSearchOwner | UserSearchOwner
SessionStatusQuery = (
    ActiveSessionStatusQuery
    | CancelledSessionStatusQuery
    | FailedSessionStatusQuery
    | ClientFinishedSessionStatusQuery
)


class SessionSearchCursor(Response):
    """Where the next page starts; given back as it came."""

    last_created_at: AwareDatetime
    last_session_id: str


class SessionSearchRequest(Params):
    """Which sessions to find: those that meet every condition that is given."""

    session_id: str | None = None
    """With a display name too, either may match."""
    project_ids: list[str] | None = None
    user_metadata: dict[str, str] = Field(default_factory=dict)
    display_name: str | None = Field(default=None, min_length=1)
    """Words that the name has, in any case."""
    owner: SearchOwner = OwnSearchOwner()
    statuses: list[SessionStatusQuery] | None = Field(default=None, min_length=1)
    limit: int = Field(default=50, ge=1, le=200)
    cursor: SessionSearchCursor | None = None


# ---- the answer ----


class SessionActive(Response):
    """It goes on."""

    type: Literal["active"] = "active"


class SessionCancelled(Response):
    """It was cancelled."""

    type: Literal["cancelled"] = "cancelled"
    detail: str | None = None


class SessionFailedRequestReason(Response):
    """A request failed."""

    type: Literal["request"] = "request"
    request_id: str
    request_type: str


class SessionFailedTrainingRunReason(Response):
    """A training run failed."""

    type: Literal["training_run"] = "training_run"
    training_run_id: str


class SessionFailedSamplingSessionReason(Response):
    """A sampler failed."""

    type: Literal["sampling_session"] = "sampling_session"
    sampling_session_id: str


SessionFailedReason = Annotated[
    SessionFailedRequestReason | SessionFailedTrainingRunReason | SessionFailedSamplingSessionReason,
    Field(discriminator="type"),
]


class SessionFailed(Response):
    """It failed."""

    type: Literal["failed"] = "failed"
    category: Literal["user", "internal"]
    reason: SessionFailedReason
    message: str


class ClientSessionFinishReason(Response):
    """Why the client ended it."""

    type: ClientSessionFinishReasonType


class ClientSessionFinished(Response):
    """Its client ended it."""

    type: Literal["client_finished"] = "client_finished"
    reason: ClientSessionFinishReason
    detail: str | None = None


SessionStatus = Annotated[
    SessionFailed | SessionCancelled | ClientSessionFinished | SessionActive, Field(discriminator="type")
]


class SessionSummary(Response):
    """One session that was found."""

    session_id: str
    created_at: datetime
    owner: str
    project_id: str
    status: SessionStatus | None = None
    """None where it has neither ended nor is known to go on."""
    checkpoints_count: int
    display_name: str | None = None
    user_metadata: dict[str, str] | None = None
    checkpoint_storage_bytes: int | None = None


class SessionSearchResponse(Response):
    """One page, newest first."""

    sessions: list[SessionSummary]
    next_cursor: SessionSearchCursor | None = None
    """For the next request; None on the last page."""
