"""The route that searches sessions: which match, newest first, a page at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

from fastapi import APIRouter, Request, Response

from tinkerlite import types
from tinkerlite_server.routes.checkpoints import utc
from tinkerlite_server.routes.exchange import Owner, Served, parse, read_json, reply
from tinkerlite_server.routes.sessions import as_text
from tinkerlite_server.tables import SessionRow

router = APIRouter()


@router.post("/sessions/search")
async def search_sessions(request: Request, service: Served, owner: Owner) -> Response:
    """The caller's sessions that meet every condition, newest first.

    A condition that is not known is refused, unlike elsewhere: left out, it would find too much.
    """
    asked = parse(types.SessionSearchRequest, await read_json(request))
    # One more than asked for tells whether there is another page.
    rows = service.store.search_sessions(
        owner,
        _filter(asked),
        # Times are told in microseconds, and kept with a little more.
        not_after=asked.cursor.last_created_at.timestamp() + 1e-6 if asked.cursor else None,
        limit=asked.limit + 1,
    )
    page = rows[: asked.limit]
    totals = service.store.checkpoint_totals([row.id for row in page])
    cursor = None
    if len(rows) > len(page):
        cursor = types.SessionSearchCursor(last_created_at=utc(page[-1].created), last_session_id=page[-1].id)
    sessions = [_summary(row, *totals.get(row.id, (0, 0))) for row in page]
    return reply(types.SessionSearchResponse(sessions=sessions, next_cursor=cursor))


def _filter(asked: types.SessionSearchRequest) -> Callable[[SessionRow], bool]:
    conditions = list(_conditions(asked))
    return lambda row: all(condition(row) for condition in conditions)


def _conditions(asked: types.SessionSearchRequest) -> Iterator[Callable[[SessionRow], bool]]:
    if asked.cursor is not None:
        last = asked.cursor.last_created_at, asked.cursor.last_session_id
        yield lambda row: (utc(row.created), row.id) < last
    if asked.session_id is not None or asked.display_name is not None:
        words = (asked.display_name or "").casefold().split()
        yield lambda row: row.id == asked.session_id or _is_called(row, words)
    # Nobody else's sessions can be had here, so that all that are accessible are one's own.
    if isinstance(asked.owner, types.UserSearchOwner):
        names = asked.owner.owner_urns
        yield lambda row: _owner(row) in names
    if asked.project_ids is not None:
        projects = asked.project_ids
        yield lambda row: row.project_id in projects
    if asked.statuses is not None:
        statuses = asked.statuses
        yield lambda row: any(_is(row, status) for status in statuses)
    if asked.user_metadata:
        yield lambda row: asked.user_metadata.items() <= as_text(row.user_metadata).items()


def _is_called(row: SessionRow, words: list[str]) -> bool:
    """Whether all the words are in the session's name, in any case."""
    name = (row.display_name or "").casefold()
    return bool(words) and all(word in name for word in words)


def _is(row: SessionRow, asked: types.SessionStatusQuery) -> bool:
    status = _status(row)
    if status is None or status.type != asked.type:
        return False
    reasons = asked.reasons if isinstance(asked, types.ClientFinishedSessionStatusQuery) else None
    return reasons is None or row.finish_reason in reasons


def _status(row: SessionRow) -> types.SessionActive | types.ClientSessionFinished | None:
    """How a session is; None where it ended and its client did not say how."""
    if row.ended is None:
        return types.SessionActive()
    for reason in get_args(types.ClientSessionFinishReasonType):
        if row.finish_reason == reason:
            finished = types.ClientSessionFinishReason(type=reason)
            return types.ClientSessionFinished(reason=finished, detail=row.finish_detail)
    return None


def _summary(row: SessionRow, checkpoints: int, size_bytes: int) -> types.SessionSummary:
    return types.SessionSummary(
        session_id=row.id,
        created_at=utc(row.created),
        owner=_owner(row),
        project_id=row.project_id or "",
        status=_status(row),
        checkpoints_count=checkpoints,
        checkpoint_storage_bytes=size_bytes,
        display_name=row.display_name,
        user_metadata=as_text(row.user_metadata),
    )


def _owner(row: SessionRow) -> str:
    return row.owner[:12]
