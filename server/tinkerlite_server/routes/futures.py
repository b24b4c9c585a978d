"""Routes of the future protocol: come back for a result, or give it up."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from tinkerlite.wire import PROTOBUF_CONTENT_TYPE
from tinkerlite_server.futures import Done, Times
from tinkerlite_server.routes.dialects import as_json
from tinkerlite_server.routes.exchange import Body, Owner, Served, parse, read_json, reply

router = APIRouter()


class RequestId(Body):
    """Body of retrieve_future and cancel_future."""

    request_id: str


@router.post("/retrieve_future")
async def retrieve_future(request: Request, service: Served, owner: Owner) -> Response:
    """The result, as soon as there is one; 408 when it takes longer than a client cares to wait.

    A failed request is a 200 with `error` and `category`: an error status would be taken for a
    hiccup of the network, and asked again.
    """
    request_id = parse(RequestId, await read_json(request)).request_id
    outcome = await service.futures.wait(request_id, owner, service.settings.limits.poll_seconds)
    if outcome is None:
        waits_for = service.scheduler.why_waiting(request_id)
        return reply({"queue_state": "active", "queue_state_reason": waits_for}, 408)
    headers = _timing(service.futures.times(request_id))
    if not isinstance(outcome, Done):
        return reply({"error": outcome.message, "category": outcome.category}, 200, **headers)
    if outcome.content == "json" or PROTOBUF_CONTENT_TYPE not in request.headers.get("accept", ""):
        return Response(as_json(outcome), headers=headers, media_type="application/json")
    return Response(outcome.body, headers=headers, media_type=PROTOBUF_CONTENT_TYPE)


def _timing(times: Times | None) -> dict[str, str]:
    """In milliseconds, as the standard header has it: how long it was queued, and in the engine's hands."""
    if times is None:
        return {}
    return {"Server-Timing": f"queue;dur={1e3 * times.queued:.3f}, engine;dur={1e3 * times.engine:.3f}"}


@router.post("/cancel_future")
async def cancel_future(request: Request, service: Served, owner: Owner) -> Response:
    """Stop sampling for a request that nobody waits for any more. Training operations run on."""
    request_id = parse(RequestId, await read_json(request)).request_id
    if service.futures.owns(request_id, owner):
        service.scheduler.cancel_sample(request_id)
    return reply({"type": "cancel_future"})
