"""Routes over training runs: listed and shown, in memory or not."""

from __future__ import annotations

from fastapi import APIRouter, Query, Response

from tinkerlite import types
from tinkerlite_server.routes.checkpoints import checkpoint_entry, utc
from tinkerlite_server.routes.exchange import FARTHEST, AccessScope, Owner, Served, reply
from tinkerlite_server.routes.sessions import as_text
from tinkerlite_server.service import Service
from tinkerlite_server.tables import RunRow

router = APIRouter()


@router.get("/training_runs")
async def list_training_runs(
    service: Served,
    owner: Owner,
    limit: int = Query(20, ge=1, le=1000),
    offset: int = Query(0, ge=0, le=FARTHEST),
    access_scope: AccessScope = "owned",
    project_id: str | None = None,
) -> Response:
    """Training runs, the latest used first."""
    rows, total = service.store.list_runs(
        owner, limit=limit, offset=offset, others=access_scope == "accessible", project_id=project_id
    )
    return reply(
        types.TrainingRunsResponse(
            training_runs=[_training_run(row, service, owner) for row in rows],
            cursor=types.Cursor(offset=offset, limit=limit, total_count=total),
        )
    )


@router.get("/training_runs/{run_id}")
async def get_training_run(
    run_id: str, service: Served, owner: Owner, access_scope: AccessScope = "owned"
) -> Response:
    """One training run, whether or not it is still in memory."""
    find = service.store.run if access_scope == "owned" else service.store.readable_run
    return reply(_training_run(find(run_id, owner), service, owner))


def _training_run(run: RunRow, service: Service, owner: str) -> types.TrainingRun:
    training = service.store.last_checkpoint(run.id, "weights", owner)
    sampler = service.store.last_checkpoint(run.id, "sampler_weights", owner)
    adapter = run.adapter_config
    return types.TrainingRun(
        training_run_id=run.id,
        base_model=run.base_model,
        # Part of a key's digest, which others could try keys against.
        model_owner=run.owner[:12] if run.owner == owner else "someone else",
        is_lora=adapter is not None,
        lora_rank=adapter.rank if adapter else None,
        last_request_time=utc(run.last_request),
        last_checkpoint=checkpoint_entry(training) if training else None,
        last_sampler_checkpoint=checkpoint_entry(sampler) if sampler else None,
        user_metadata=as_text(run.user_metadata),
    )
