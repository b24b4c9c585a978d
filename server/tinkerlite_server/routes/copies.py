"""The route that copies a checkpoint: the files are shared, and go with the last who names them."""

from __future__ import annotations

import secrets

from fastapi import APIRouter, Request, Response
from pydantic import Field, StrictInt

from tinkerlite_server.errors import BadRequest
from tinkerlite_server.futures import fingerprint
from tinkerlite_server.routes.exchange import Body, Owner, Served, parse, read_json, reader, reply
from tinkerlite_server.service import Service
from tinkerlite_server.validation import check_ttl

router = APIRouter()


class CopyWeights(Body):
    """Body of copy_weights: into a session under a number, or under a project's label alone."""

    source_path: str
    session_id: str | None = None
    model_seq_id: StrictInt | None = Field(default=None, ge=0)
    destination_project_id: str | None = None
    ttl_seconds: StrictInt | None = None
    weights_access_token: str | None = None


@router.post("/copy_weights")
async def copy_weights(request: Request, service: Served, owner: Owner) -> Response:
    """Make a checkpoint the caller's own, in a run of its own that cannot be trained on."""
    body = parse(CopyWeights, await read_json(request))
    token = request.headers.get("x-tinker-weights-access-token") or body.weights_access_token
    source = service.store.checkpoint(body.source_path, reader(service, owner, token))
    ttl_seconds = check_ttl(body.ttl_seconds)
    session_id, number = _destination(body, request.headers.get("x-idempotency-key"), service, owner)
    run_id = f"{session_id}:train:{number}"
    # Sent again, it is there already.
    copy = service.store.find_checkpoint(run_id, source.kind, source.name, owner)
    if copy is None and service.store.find_run(run_id) is None:
        copy = service.store.copy_checkpoint(source, run_id, owner, ttl_seconds)
    if copy is None or copy.folder != source.folder:
        raise BadRequest(f"training run {run_id!r} exists already; count model_seq_id up")
    return reply({"tinker_path": copy.path})


def _destination(body: CopyWeights, key: str | None, service: Service, owner: str) -> tuple[str, int]:
    """The session of the copy, and its number there."""
    if (body.session_id is None) != (body.model_seq_id is None):
        raise BadRequest("session_id and model_seq_id go together: name both, or destination_project_id")
    if body.session_id is not None and body.model_seq_id is not None:
        service.store.live_session(body.session_id, owner)
        service.saw(body.session_id)
        return body.session_id, body.model_seq_id
    if body.destination_project_id is None:
        raise BadRequest("name session_id and model_seq_id, or destination_project_id")
    # From the key, so that a request sent again finds what it made.
    unique = fingerprint(owner, key).hex()[:16] if key else secrets.token_hex(8)
    session_id = f"sess-{unique}"
    service.store.add_finished_session(session_id, owner, project_id=body.destination_project_id)
    return session_id, 0
