"""Routes that save weights: to go on training from, to sample from, or to take elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import Field

from tinkerlite_server.age_files import check_recipients
from tinkerlite_server.errors import BadRequest
from tinkerlite_server.operations import UNNUMBERED, Operation, Save, SavedKind, Snapshot
from tinkerlite_server.routes.exchange import (
    Body,
    Owner,
    Served,
    digest,
    numbered,
    parse,
    promise,
    read_json,
    repeat_key,
)
from tinkerlite_server.service import Service
from tinkerlite_server.validation import check_name, check_ttl

router = APIRouter()

Saving = TypeVar("Saving", bound="SaveWeights")


class SaveWeights(Body):
    """Body of save_weights."""

    model_id: str
    seq_id: int | None = Field(default=None, ge=0)
    path: str | None = None
    ttl_seconds: int | None = None
    overwrite: bool = False
    user_metadata: dict[str, str] | None = None


@router.post("/save_weights")
async def save_weights(request: Request, service: Served, owner: Owner) -> Response:
    """Save weights and optimizer state."""
    raw = await read_json(request)
    return _submit("save_weights", SaveWeights, raw, service, owner, lambda body, _: _save("weights", body))


class SaveWeightsForSampler(SaveWeights):
    """Body of save_weights_for_sampler: `path` to save, or `sampling_session_seq_id` to sample at once."""

    sampling_session_seq_id: int | None = Field(default=None, ge=0)
    kind: Literal["snapshot", "inflight"] = "snapshot"
    """Both give a sampling session whose weights stay as they are: "inflight" allows newer ones."""


@router.post("/save_weights_for_sampler")
async def save_weights_for_sampler(request: Request, service: Served, owner: Owner) -> Response:
    """Save weights to sample from under a name, or hand them to a sampling session of their own."""
    raw = await read_json(request)
    return _submit("save_weights_for_sampler", SaveWeightsForSampler, raw, service, owner, _save_or_snapshot)


def _save_or_snapshot(body: SaveWeightsForSampler, session_id: str) -> Callable[[str], Operation]:
    if (body.path is None) == (body.sampling_session_seq_id is None):
        raise BadRequest("name either path (saved weights) or sampling_session_seq_id (a session)")
    if body.path is not None:
        return _save("sampler_weights", body)
    return _snapshot(body, f"{session_id}:sample:{body.sampling_session_seq_id}")


class SaveWeightsExternal(SaveWeights):
    """Body of save_weights_external; `path` is not optional."""

    age_encryption_recipients: list[str] | None = None


@router.post("/save_weights_external")
async def save_weights_external(request: Request, service: Served, owner: Owner) -> Response:
    """Save weights in PEFT's layout, encrypted if asked, to be downloaded and used elsewhere."""
    raw = await read_json(request)
    return _submit("save_weights_external", SaveWeightsExternal, raw, service, owner, _save_external)


def _save_external(body: SaveWeightsExternal, _session_id: str) -> Callable[[str], Operation]:
    if body.path is None:
        raise BadRequest("path is missing: external weights are saved under a name")
    recipients = ()
    if body.age_encryption_recipients is not None:
        recipients = check_recipients(body.age_encryption_recipients, "age_encryption_recipients")
    return _save("external_weights", body, recipients)


def _submit(
    verb: str,
    kind: type[Saving],
    raw: dict[str, Any],
    service: Service,
    owner: str,
    make: Callable[[Saving, str], Callable[[str], Operation]],
) -> Response:
    """Accept what saves a run.

    Args:
        verb: the request's name.
        kind, raw: what its body must be, and is.
        make: the operation by request id, from the body and the id of the run's session.
    """
    with numbered(service, owner, verb, raw.get("model_id"), raw.get("seq_id")):
        body = parse(kind, raw)
        run = service.store.live_run(body.model_id, owner)
        service.saw(run.session_id)
        operation = make(body, run.session_id)
        request_id = service.submit(owner, repeat_key(run.id, body.seq_id), digest(raw), operation)
    return promise(request_id, model_id=run.id)


def _save(kind: SavedKind, body: SaveWeights, recipients: tuple[str, ...] = ()) -> Callable[[str], Operation]:
    name = check_name(body.path, "path") if body.path is not None else None
    ttl_seconds = check_ttl(body.ttl_seconds)

    def operation(request_id: str) -> Operation:
        return Save(
            request_id=request_id,
            model_id=body.model_id,
            seq_id=body.seq_id or UNNUMBERED,
            kind=kind,
            # Without a name, one that no other has.
            name=name or request_id,
            ttl_seconds=ttl_seconds,
            overwrite=body.overwrite,
            user_metadata=body.user_metadata,
            recipients=recipients,
        )

    return operation


def _snapshot(body: SaveWeightsForSampler, sampling_session_id: str) -> Callable[[str], Operation]:
    def operation(request_id: str) -> Operation:
        return Snapshot(
            request_id=request_id,
            model_id=body.model_id,
            seq_id=body.seq_id or UNNUMBERED,
            sampling_session_id=sampling_session_id,
        )

    return operation
