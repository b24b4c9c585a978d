"""Routes by which one poll waits for all samples of a client, and clients of one session stay apart.

Samples are numbered by each client for itself: client c of a sampling session counts from
c * 10^9, so the number of a sample tells whose it is.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from tinkerlite_server.completions import Completion
from tinkerlite_server.routes.exchange import Body, Owner, Served, parse, read_json, reply

router = APIRouter()

SAMPLES_PER_CLIENT = 10**9


def poll_group(sampler_id: str, client: int) -> Hashable:
    """What the samples of one client have in common, so that one poll can wait for all."""
    return sampler_id, client


class Target(Body):
    """One client of a sampling session."""

    type: Literal["sampling_session"] = "sampling_session"
    sampling_session_id: str
    cloned_sampler_id: int = Field(default=0, ge=0)


class RetrieveFutures(Body):
    """Body of retrieve_futures."""

    target: Target
    prev_cursor: int = Field(default=0, ge=0)
    timeout: float | None = Field(default=None, ge=0)
    retrieved_request_ids: list[str] = []  # noqa: RUF012 (pydantic copies it)


@router.post("/retrieve_futures")
async def retrieve_futures(request: Request, service: Served, owner: Owner) -> Response:
    """Which samples of a client are done since the last time, as soon as any is.

    Held as long as `retrieve_future` is, or `timeout`; results are then fetched one by one. 410
    if the server was restarted since, as the samples are lost with it.
    """
    body = parse(RetrieveFutures, await read_json(request))
    sampler = service.store.sampler(body.target.sampling_session_id, owner)
    service.saw(sampler.session_id)
    group = poll_group(sampler.id, body.target.cloned_sampler_id)
    service.futures.release(group, body.retrieved_request_ids)
    longest = service.settings.limits.poll_seconds
    seconds = longest if body.timeout is None else min(body.timeout, longest)
    settled = await service.futures.wait_for_any(group, body.prev_cursor, seconds)
    cursor = settled[-1].cursor if settled else body.prev_cursor
    return reply({"completions": [_completion(each) for each in settled], "cursor": cursor})


def _completion(settled: Completion) -> dict[str, Any]:
    if settled.failed:
        return {"state": "failed", "request_id": settled.request_id}
    return {
        "state": "finished",
        "request_id": settled.request_id,
        "response_payload_uncompressed_size": settled.size_bytes,
    }


class SamplingSessionId(Body):
    """Body of join_sampling_session."""

    sampling_session_id: str


@router.post("/join_sampling_session")
async def join_sampling_session(request: Request, service: Served, owner: Owner) -> Response:
    """A number for one more client of a sampling session, which no other has."""
    body = parse(SamplingSessionId, await read_json(request))
    sampler = service.store.live_sampler(body.sampling_session_id, owner)
    service.saw(sampler.session_id)
    number = service.store.join_sampler(sampler.id)
    return reply({"client_counter": number, "type": "join_sampling_session"})
