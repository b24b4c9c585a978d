"""Routes of training: gradients, and steps on them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import Field

from tinkerlite.types import AdamParams, ForwardBackwardRequest
from tinkerlite.wire import (
    PROTOBUF_CONTENT_TYPE,
    WireError,
    decode_forward_backward_request,
    identify_forward_backward_request,
)
from tinkerlite_server.engine.protocols import LossProgram
from tinkerlite_server.errors import BadRequest
from tinkerlite_server.operations import UNNUMBERED, ForwardBackward, Operation, OptimStep
from tinkerlite_server.routes.bodies import read_body
from tinkerlite_server.routes.dialects import forward_backward_from_json
from tinkerlite_server.routes.exchange import (
    Body,
    Owner,
    Served,
    content_type,
    digest,
    numbered,
    parse,
    promise,
    read_json,
    repeat_key,
)
from tinkerlite_server.service import Service
from tinkerlite_server.validation import batch_fingerprint, custom_loss_id, train_batch

router = APIRouter()


@router.post("/forward_backward")
async def forward_backward(request: Request, service: Served, owner: Owner) -> Response:
    """Add a batch's gradients to its run's, or (`forward_only`) only compute its losses.

    The body is a protobuf message; JSON of older clients is understood too.
    """
    kind = content_type(request)
    if kind == PROTOBUF_CONTENT_TYPE:
        return _submit(_decoded(await read_body(request), service, owner), service, owner)
    if kind != "application/json":
        raise HTTPException(
            415, f"the body is sent as {kind or 'no type'}; send {PROTOBUF_CONTENT_TYPE} or application/json"
        )
    return _submit_json(await read_json(request), service, owner, forward_only=False)


@router.post("/forward")
async def forward(request: Request, service: Served, owner: Owner) -> Response:
    """Losses without gradients, as older clients ask for them."""
    return _submit_json(await read_json(request), service, owner, forward_only=True)


def _decoded(body: bytes, service: Service, owner: str) -> ForwardBackwardRequest:
    try:
        return decode_forward_backward_request(body)
    except WireError:
        model_id, seq_id, forward_only = identify_forward_backward_request(body)
        with numbered(service, owner, "forward_backward", model_id, seq_id, loses_gradients=not forward_only):
            raise


def _submit_json(raw: dict[str, Any], service: Service, owner: str, *, forward_only: bool) -> Response:
    model_id, seq_id = raw.get("model_id"), raw.get("seq_id")
    loses = not forward_only
    with numbered(service, owner, "forward_backward", model_id, seq_id, loses_gradients=loses):
        request = forward_backward_from_json(raw, forward_only=forward_only)
    return _submit(request, service, owner)


def _submit(request: ForwardBackwardRequest, service: Service, owner: str) -> Response:
    model_id, seq_id = request.model_id, request.seq_id
    loses = not request.forward_only
    with numbered(service, owner, "forward_backward", model_id, seq_id, loses_gradients=loses):
        if seq_id < 0:
            raise BadRequest(f"seq_id is {seq_id}; operations are numbered from 1")
        run = service.store.live_run(model_id, owner)
        service.saw(run.session_id)
        batch = train_batch(
            request,
            service.model(run.base_model),
            service.settings.limits,
            _program(request, run.session_id, service),
        )

        def operation(request_id: str) -> Operation:
            return ForwardBackward(
                request_id=request_id, model_id=model_id, seq_id=seq_id or UNNUMBERED, batch=batch
            )

        request_id = service.submit(owner, repeat_key(model_id, seq_id), batch_fingerprint(batch), operation)
    return promise(request_id, model_id=model_id)


def _program(request: ForwardBackwardRequest, session_id: str, service: Service) -> LossProgram | None:
    """The custom loss that a request names; None for one of the server's own."""
    if request.loss_fn != "custom":
        return None
    return service.require_custom_losses().get(session_id, custom_loss_id(request))


class OptimStepBody(Body):
    """Body of optim_step."""

    model_id: str
    seq_id: int | None = Field(default=None, ge=0)
    adam_params: AdamParams | None = None
    optimizer_params: dict[str, Any] | None = None


class OptimizerParams(Body):
    """AdamW's settings under the name that fits every family."""

    optimizer_params: AdamParams


@router.post("/optim_step")
async def optim_step(request: Request, service: Served, owner: Owner) -> Response:
    """Step on the accumulated gradients, then zero them."""
    raw = await read_json(request)
    with numbered(service, owner, "optim_step", raw.get("model_id"), raw.get("seq_id")):
        body = parse(OptimStepBody, raw)
        params = _adam_params(body)
        run = service.store.live_run(body.model_id, owner)
        service.saw(run.session_id)

        def operation(request_id: str) -> Operation:
            return OptimStep(
                request_id=request_id,
                model_id=run.id,
                seq_id=body.seq_id or UNNUMBERED,
                params=params,
            )

        request_id = service.submit(owner, repeat_key(run.id, body.seq_id), digest(raw), operation)
    return promise(request_id, model_id=run.id)


def _adam_params(body: OptimStepBody) -> AdamParams:
    """A step's settings, from either of the two places where clients put them."""
    if (body.adam_params is None) == (body.optimizer_params is None):
        raise BadRequest("send either adam_params, or optimizer_params with their type")
    if body.adam_params is not None:
        return body.adam_params
    params = dict(body.optimizer_params or {})
    family = params.pop("type", None)
    if family != "adamw":
        raise BadRequest(
            f"optimizer_params are of type {family!r}, and every run here has the optimizer 'adamw', as "
            "get_info says; send adam_params"
        )
    return parse(OptimizerParams, {"optimizer_params": params}).optimizer_params
