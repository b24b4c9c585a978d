"""Routes of the service and its sessions: what the server is, and who is using it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Query, Request, Response

from tinkerlite import types
from tinkerlite_server.engine.catalog import tokenizer_files
from tinkerlite_server.engine.protocols import ModelInfo
from tinkerlite_server.routes.exchange import (
    FARTHEST,
    AccessScope,
    Body,
    Owner,
    Served,
    parse,
    read_json,
    reply,
)
from tinkerlite_server.sample_validation import SAMPLE_FEATURES
from tinkerlite_server.settings import Limits
from tinkerlite_server.validation import LOSSES

router = APIRouter()


@router.get("/healthz")
async def health() -> Response:
    """Alive, for anyone who asks."""
    return reply({"status": "ok"})


# ---- what the server asks of clients, and offers ----


@router.post("/client/config")
async def client_config(service: Served, owner: Owner) -> Response:
    """How clients should behave here."""
    limits = service.settings.limits
    return reply(
        {
            "pjwt_auth_enabled": False,
            # Chunks out of order work too; one after the other saves parking them.
            "parallel_fwdbwd_chunks": service.settings.far_clients,
            "proto_compress_fwdbwd": service.settings.far_clients,
            "fwdbwd_max_chunk_len": limits.chunk_datums,
            "fwdbwd_max_chunk_bytes_count": limits.chunk_bytes,
            "sample_no_retries": True,  # a failure here is an answer, not a hiccup
            "sample_use_retrieve_futures": service.settings.session_poller,
            "sample_join_sampling_session": False,
            "custom_loss_server_side": service.settings.custom_losses,
            # For clients of mid-2026, to whom it is a choice.
            "proto_write_fwdbwd": True,
            "fwd_via_fwdbwd": True,
        }
    )


@router.post("/client/dynamic_config")
async def client_dynamic_config(owner: Owner) -> Response:
    """What clients ask again now and then."""
    return reply(
        {"refresh_interval_sec": 3600, "sample_cancel_enabled": True, "sample_cancel_max_batch_size": 64}
    )


@router.get("/get_server_capabilities")
async def capabilities(service: Served, owner: Owner) -> Response:
    """The base models, and what can be asked of them."""
    limits = service.settings.limits
    losses = [*LOSSES, *(["custom"] if service.settings.custom_losses else [])]
    models = [_supported(info, limits, losses) for info in service.catalog.values()]
    return reply(types.GetServerCapabilitiesResponse(supported_models=models))


def _supported(info: ModelInfo, limits: Limits, losses: list[str]) -> types.SupportedModel:
    return types.SupportedModel(
        model_name=info.name,
        max_context_length=info.max_context,
        trainable=True,
        sampleable=True,
        vocab_size=info.vocab_size,
        tokenizer_hash=info.tokenizer_hash,
        dtype=info.dtype,
        max_topk=min(limits.max_topk, info.vocab_size),
        sample_features=list(SAMPLE_FEATURES),
        losses=losses,
    )


@router.get("/tokenizers/{model_name:path}")
def tokenizer(model_name: str, service: Served, owner: Owner) -> Response:
    """A base model's tokenizer files, so that clients need no hub. An addition to the protocol."""
    info = service.model(model_name)
    return reply(
        types.TokenizerFiles(
            model_name=info.name, files=tokenizer_files(info), tokenizer_hash=info.tokenizer_hash
        )
    )


# ---- sessions ----


class CreateSession(Body):
    """Body of create_session."""

    tags: Sequence[str] = ()
    user_metadata: dict[str, Any] | None = None
    display_name: str | None = None
    project_id: str | None = None


@router.post("/create_session")
async def create_session(request: Request, service: Served, owner: Owner) -> Response:
    """Register a client process."""
    body = parse(CreateSession, await read_json(request))
    session_id = service.open_session(
        owner,
        tags=list(body.tags),
        user_metadata=body.user_metadata or {},
        display_name=body.display_name,
        project_id=body.project_id,
    )
    return reply({"session_id": session_id, "type": "create_session"})


class SessionHeartbeat(Body):
    """Body of session_heartbeat."""

    session_id: str


@router.post("/session_heartbeat")
async def session_heartbeat(request: Request, service: Served, owner: Owner) -> Response:
    """A sign of life; 410 once the session has ended, which stops the client's beat."""
    session_id = parse(SessionHeartbeat, await read_json(request)).session_id
    service.store.live_session(session_id, owner)
    service.saw(session_id)
    return reply({"type": "session_heartbeat"})


class Reason(Body):
    """Why a session is over."""

    type: str


class FinishSession(Body):
    """Body of finish."""

    reason: Reason = Reason(type="success")
    detail: str | None = None


@router.post("/sessions/{session_id}/finish")
async def finish_session(session_id: str, request: Request, service: Served, owner: Owner) -> Response:
    """The client is done: free what the session holds in memory."""
    body = parse(FinishSession, await read_json(request))
    service.store.session(session_id, owner)
    why, finish = f"its client closed it ({body.reason.type})", (body.reason.type, body.detail)
    service.end_session(session_id, why, finish=finish)
    return reply({"type": "finish_session"})


class SessionProject(Body):
    """Body of project; null takes the label off."""

    project_id: str | None


@router.put("/sessions/{session_id}/project")
async def set_session_project(session_id: str, request: Request, service: Served, owner: Owner) -> Response:
    """Label a session with a project. A project is that label and nothing more here."""
    body = parse(SessionProject, await read_json(request))
    service.store.session(session_id, owner)
    service.store.set_session_project(session_id, body.project_id)
    return Response(status_code=204)


@router.get("/sessions")
async def list_sessions(
    service: Served,
    owner: Owner,
    limit: int = Query(20, ge=1, le=1000),
    offset: int = Query(0, ge=0, le=FARTHEST),
    access_scope: AccessScope = "owned",
) -> Response:
    """The caller's sessions, newest first. Nobody else's can be had, whatever the scope."""
    return reply({"sessions": service.store.list_sessions(owner, limit=limit, offset=offset)})


@router.get("/sessions/{session_id}")
async def get_session(
    session_id: str, service: Served, owner: Owner, access_scope: AccessScope = "owned"
) -> Response:
    """What a session made."""
    session = service.store.session(session_id, owner)
    return reply(
        {
            "training_run_ids": service.store.runs_of(session_id),
            "sampler_ids": service.store.samplers_of(session_id),
            "user_metadata": as_text(session.user_metadata),
            "display_name": session.display_name,
        }
    )


@router.post("/telemetry")
async def telemetry(request: Request, owner: Owner) -> Response:
    """Accepted, and dropped: nobody is watched here."""
    async for _ in request.stream():
        pass
    return reply({"status": "accepted"})


def as_text(metadata: dict[str, Any]) -> dict[str, str]:
    """Metadata as the listings type it: text to text."""
    return {name: value if isinstance(value, str) else repr(value) for name, value in metadata.items()}
