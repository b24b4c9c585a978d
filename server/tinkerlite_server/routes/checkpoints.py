"""Routes over checkpoints: listed, shown to others, deleted."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, Query, Request, Response
from pydantic import StrictInt

from tinkerlite import types
from tinkerlite_server.errors import BadRequest
from tinkerlite_server.routes.exchange import FARTHEST, Body, Owner, Served, parse, read_json, reply
from tinkerlite_server.routes.sessions import as_text
from tinkerlite_server.tables import CheckpointRow
from tinkerlite_server.validation import check_ttl

router = APIRouter()

EVERYTHING = 10_000
"""Most checkpoints in the listing of one run, which has no pages."""


@router.get("/checkpoints")
async def list_checkpoints(
    service: Served,
    owner: Owner,
    limit: int = Query(100, ge=1, le=1000),
    offset: int = Query(0, ge=0, le=FARTHEST),
) -> Response:
    """The caller's checkpoints, newest first."""
    rows, total = service.store.list_checkpoints(owner, limit=limit, offset=offset)
    return reply(
        types.CheckpointsListResponse(
            checkpoints=[checkpoint_entry(row) for row in rows],
            cursor=types.Cursor(offset=offset, limit=limit, total_count=total),
        )
    )


@router.get("/training_runs/{run_id}/checkpoints")
async def list_run_checkpoints(run_id: str, service: Served, owner: Owner) -> Response:
    """A run's checkpoints, newest first; of someone else's run those that are public."""
    service.store.readable_run(run_id, owner)
    rows, _ = service.store.list_checkpoints(owner, run_id=run_id, limit=EVERYTHING, offset=0)
    return reply(types.CheckpointsListResponse(checkpoints=[checkpoint_entry(row) for row in rows]))


@router.delete("/training_runs/{run_id}/checkpoints/{kind}/{name}")
async def delete_checkpoint(run_id: str, kind: str, name: str, service: Served, owner: Owner) -> Response:
    """Delete a checkpoint; sampling sessions that use it go on."""
    row = service.store.own_checkpoint(f"tinker://{run_id}/{kind}/{name}", owner)
    service.store.delete_checkpoint(row.id)
    return Response(status_code=204)


@router.delete("/training_runs/{run_id}/checkpoints/{name}")
async def delete_unclear_checkpoint(run_id: str, name: str, owner: Owner) -> Response:
    """A bare name could mean several checkpoints."""
    raise BadRequest(
        f"name the kind too, one of {sorted(types.CHECKPOINT_TYPES)}: .../checkpoints/KIND/{name}"
    )


@router.post("/training_runs/{run_id}/checkpoints/{kind}/{name}/publish")
async def publish(run_id: str, kind: str, name: str, service: Served, owner: Owner) -> Response:
    """Let every owner read a checkpoint, and load and sample from it. Doing so again changes nothing."""
    row = service.store.own_checkpoint(f"tinker://{run_id}/{kind}/{name}", owner)
    service.store.set_checkpoint_public(row.id, public=True)
    return Response(status_code=204)


@router.delete("/training_runs/{run_id}/checkpoints/{kind}/{name}/publish")
async def unpublish(run_id: str, kind: str, name: str, service: Served, owner: Owner) -> Response:
    """Keep a checkpoint to its owner again; what others have made of it goes on."""
    row = service.store.own_checkpoint(f"tinker://{run_id}/{kind}/{name}", owner)
    service.store.set_checkpoint_public(row.id, public=False)
    return Response(status_code=204)


class Ttl(Body):
    """Body of ttl; null removes the expiry."""

    ttl_seconds: StrictInt | None


@router.put("/training_runs/{run_id}/checkpoints/{kind}/{name}/ttl")
async def set_ttl(
    run_id: str, kind: str, name: str, request: Request, service: Served, owner: Owner
) -> Response:
    """Let a checkpoint expire, counted from now, or keep it."""
    ttl_seconds = check_ttl(parse(Ttl, await read_json(request)).ttl_seconds)
    row = service.store.own_checkpoint(f"tinker://{run_id}/{kind}/{name}", owner)
    service.store.set_checkpoint_ttl(row.id, ttl_seconds)
    return Response(status_code=204)


def checkpoint_entry(row: CheckpointRow) -> types.Checkpoint:
    """A checkpoint as the listings show it."""
    return types.Checkpoint(
        checkpoint_id=f"{row.kind}/{row.name}",
        checkpoint_type=types.CHECKPOINT_TYPES[row.kind],
        time=utc(row.created),
        tinker_path=row.path,
        size_bytes=row.size_bytes,
        public=row.public,
        user_metadata=as_text(row.user_metadata) or None,
        expires_at=None if row.expires is None else utc(row.expires),
    )


def utc(seconds: float) -> datetime:
    """A time as it is told to clients."""
    return datetime.fromtimestamp(seconds, UTC)
