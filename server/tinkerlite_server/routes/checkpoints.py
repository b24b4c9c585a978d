"""Routes over what was saved: checkpoints and training runs, listed, shown, deleted."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, Query, Request, Response
from pydantic import StrictInt

from tinkerlite import types
from tinkerlite_server.errors import BadRequest
from tinkerlite_server.routes.exchange import Body, Owner, Served, parse, read_json, reply
from tinkerlite_server.routes.sessions import as_text
from tinkerlite_server.service import Service
from tinkerlite_server.store import KINDS
from tinkerlite_server.tables import CheckpointRow, RunRow
from tinkerlite_server.validation import check_ttl

router = APIRouter()

EVERYTHING = 10_000
"""Most checkpoints in the listing of one run, which has no pages."""


@router.get("/checkpoints")
async def list_checkpoints(
    service: Served,
    owner: Owner,
    limit: int = Query(100, ge=1, le=1000),
    offset: int = Query(0, ge=0),
) -> Response:
    """The caller's checkpoints, newest first."""
    rows, total = service.store.list_checkpoints(owner, limit=limit, offset=offset)
    return reply(
        types.CheckpointsListResponse(
            checkpoints=[_checkpoint(row) for row in rows],
            cursor=types.Cursor(offset=offset, limit=limit, total_count=total),
        )
    )


@router.get("/training_runs/{run_id}/checkpoints")
async def list_run_checkpoints(run_id: str, service: Served, owner: Owner) -> Response:
    """A run's checkpoints, newest first."""
    service.store.run(run_id, owner)
    rows, _ = service.store.list_checkpoints(owner, run_id=run_id, limit=EVERYTHING, offset=0)
    return reply(types.CheckpointsListResponse(checkpoints=[_checkpoint(row) for row in rows]))


@router.delete("/training_runs/{run_id}/checkpoints/{kind}/{name}")
async def delete_checkpoint(run_id: str, kind: str, name: str, service: Served, owner: Owner) -> Response:
    """Delete a checkpoint; sampling sessions that use it go on."""
    row = service.store.checkpoint(f"tinker://{run_id}/{kind}/{name}", owner)
    service.store.delete_checkpoint(row.id)
    return Response(status_code=204)


@router.delete("/training_runs/{run_id}/checkpoints/{name}")
async def delete_unclear_checkpoint(run_id: str, name: str, owner: Owner) -> Response:
    """A bare name could mean several checkpoints."""
    raise BadRequest(f"name the kind too, one of {sorted(KINDS)}: .../checkpoints/KIND/{name}")


class Ttl(Body):
    """Body of ttl; null removes the expiry."""

    ttl_seconds: StrictInt | None


@router.put("/training_runs/{run_id}/checkpoints/{kind}/{name}/ttl")
async def set_ttl(
    run_id: str, kind: str, name: str, request: Request, service: Served, owner: Owner
) -> Response:
    """Let a checkpoint expire, counted from now, or keep it."""
    ttl_seconds = check_ttl(parse(Ttl, await read_json(request)).ttl_seconds)
    row = service.store.checkpoint(f"tinker://{run_id}/{kind}/{name}", owner)
    service.store.set_checkpoint_ttl(row.id, ttl_seconds)
    return Response(status_code=204)


@router.get("/training_runs")
async def list_training_runs(
    service: Served,
    owner: Owner,
    limit: int = Query(20, ge=1, le=1000),
    offset: int = Query(0, ge=0),
) -> Response:
    """The caller's training runs, the latest used first."""
    rows, total = service.store.list_runs(owner, limit=limit, offset=offset)
    return reply(
        types.TrainingRunsResponse(
            training_runs=[_training_run(row, service) for row in rows],
            cursor=types.Cursor(offset=offset, limit=limit, total_count=total),
        )
    )


@router.get("/training_runs/{run_id}")
async def get_training_run(run_id: str, service: Served, owner: Owner) -> Response:
    """One training run, whether or not it is still in memory."""
    return reply(_training_run(service.store.run(run_id, owner), service))


def _training_run(run: RunRow, service: Service) -> types.TrainingRun:
    newest = {kind: service.store.last_checkpoint(run.id, kind) for kind in KINDS}
    training, sampler = newest["weights"], newest["sampler_weights"]
    return types.TrainingRun(
        training_run_id=run.id,
        base_model=run.base_model,
        model_owner=run.owner[:12],
        is_lora=True,
        lora_rank=run.adapter_config.rank,
        last_request_time=_time(run.last_request),
        last_checkpoint=_checkpoint(training) if training else None,
        last_sampler_checkpoint=_checkpoint(sampler) if sampler else None,
        user_metadata=as_text(run.user_metadata),
    )


def _checkpoint(row: CheckpointRow) -> types.Checkpoint:
    return types.Checkpoint(
        checkpoint_id=f"{row.kind}/{row.name}",
        checkpoint_type=KINDS[row.kind],
        time=_time(row.created),
        tinker_path=row.path,
        size_bytes=row.size_bytes,
        user_metadata=as_text(row.user_metadata) or None,
        expires_at=None if row.expires is None else _time(row.expires),
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
