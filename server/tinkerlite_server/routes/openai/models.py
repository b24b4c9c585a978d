"""What can be sampled from: base models, and the caller's saved sampler weights."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Response

from tinkerlite_server.engine.protocols import ModelInfo
from tinkerlite_server.errors import BadRequest
from tinkerlite_server.routes.exchange import Owner, Served, reply
from tinkerlite_server.service import Service
from tinkerlite_server.tables import CheckpointRow

router = APIRouter()

_STARTED = int(time.time())
_PAGE = 1000


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a request's `model` names."""

    info: ModelInfo
    checkpoint: CheckpointRow | None = None
    """Holds the adapter; None for the base model as it is."""


def find_weights(model: str, service: Service, owner: str) -> Weights:
    """The weights of a base model's name, a checkpoint's path, or both: `BASE;tinker://...`.

    Raises:
        BadRequest: the two do not belong together, or the path is none of sampler weights.
        UnknownName: there is no such model, or not for this owner.
    """
    base_model, path = "", model
    if ";tinker://" in model:  # the name of a folder may have a semicolon of its own
        base_model, path = model.rsplit(";", 1)
    if not path.startswith("tinker://"):
        return Weights(info=service.model(model))
    checkpoint = service.store.checkpoint(path, owner)
    if checkpoint.kind != "sampler_weights":
        raise BadRequest(
            f"{checkpoint.path} is a training checkpoint; save weights to sample from with "
            "save_weights_for_sampler(name)",
            field="model",
        )
    if base_model not in ("", checkpoint.base_model):
        raise BadRequest(
            f"{checkpoint.path} was trained on {checkpoint.base_model!r}, not on {base_model!r}; "
            "weights fit their own base model alone",
            field="model",
        )
    return Weights(info=service.model(checkpoint.base_model), checkpoint=checkpoint)


@router.get("/models")
async def list_models(service: Served, owner: Owner) -> Response:
    """Base models first, then the caller's saved sampler weights, the newest first."""
    bases = [Weights(info=info) for info in service.catalog.values()]
    saved = [
        Weights(info=service.model(row.base_model), checkpoint=row)
        for row in _saved(service, owner)
        if row.base_model in service.catalog
    ]
    return reply({"object": "list", "data": [_described(weights) for weights in (*bases, *saved)]})


@router.get("/models/{model:path}")
async def get_model(model: str, service: Served, owner: Owner) -> Response:
    """One of them."""
    return reply(_described(find_weights(model, service, owner)))


def _saved(service: Service, owner: str) -> list[CheckpointRow]:
    saved: list[CheckpointRow] = []
    count, offset = 1, 0
    while offset < count:
        page, count = service.store.list_checkpoints(owner, limit=_PAGE, offset=offset)
        offset += _PAGE
        saved += [row for row in page if row.kind == "sampler_weights"]
    return saved


def _described(weights: Weights) -> dict[str, Any]:
    checkpoint = weights.checkpoint
    if checkpoint is None:
        return {
            "id": weights.info.name,
            "object": "model",
            "created": _STARTED,
            "owned_by": "tinkerlite",
            "max_model_len": weights.info.max_context,
        }
    return {
        "id": checkpoint.path,
        "object": "model",
        "created": int(checkpoint.created),
        "owned_by": checkpoint.run_id,
        "parent": checkpoint.base_model,
        "max_model_len": weights.info.max_context,
    }
