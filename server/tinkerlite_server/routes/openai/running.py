"""Running: the samples of one HTTP request, submitted, waited for or followed, and given up together.

Nobody can come back for them by id, so none is kept once its request has ended, however it ends:
answered, refused, failed, or left by a client that has gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

from tinkerlite.types import SampleResponse
from tinkerlite.wire import decode_sample_response
from tinkerlite_server.engine.protocols import SampledToken
from tinkerlite_server.errors import BadRequest, EngineFailure, ServerError
from tinkerlite_server.futures import Failed, Outcome
from tinkerlite_server.operations import Sample
from tinkerlite_server.routes.openai.models import Weights
from tinkerlite_server.sample_validation import SampleQuestion, sample_work
from tinkerlite_server.service import Service

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One HTTP request, by whom, and the server."""

    request: Request
    service: Service
    owner: str


@contextmanager
def submitted(
    exchange: Exchange, weights: Weights, questions: Sequence[SampleQuestion]
) -> Iterator[list[Sample]]:
    """Submit samples; at the end, what still runs is cancelled and nothing is kept.

    Raises:
        BadRequest, Busy: one of them cannot be accepted, and then none is.
    """
    service, samples = exchange.service, list[Sample]()

    def make(request_id: str, question: SampleQuestion) -> Sample:
        checkpoint = weights.checkpoint
        work = sample_work(
            question,
            weights.info,
            service.settings.limits,
            key=request_id,
            adapter_id=None if checkpoint is None else checkpoint.id,
        )
        folder = None if checkpoint is None else checkpoint.folder
        samples.append(Sample(owner=exchange.owner, work=work, folder=folder))
        return samples[-1]

    try:
        for question in questions:
            service.submit_sample(exchange.owner, None, b"", lambda key, q=question: make(key, q))
        yield samples
    finally:
        for sample in samples:
            service.scheduler.cancel_sample(sample.request_id)
            service.futures.discard(sample.request_id)


async def finished(exchange: Exchange, samples: Sequence[Sample]) -> list[SampleResponse]:
    """The responses, once all are there.

    Raises:
        ServerError: one failed.
        ClientDisconnect: nobody waits any more.
    """
    service, owner = exchange.service, exchange.owner
    waits = [service.futures.wait(sample.request_id, owner, None) for sample in samples]
    outcomes = await _unless_gone(exchange.request, asyncio.gather(*waits))
    return [_response(outcome) for outcome in outcomes]


async def followed(
    exchange: Exchange, samples: Sequence[Sample]
) -> AsyncGenerator[tuple[int, list[SampledToken]], None]:
    """New tokens as they come, each time of one sample request: (its place, tokens).

    Raises:
        ServerError: one failed.
        ClientDisconnect: nobody listens any more.
    """
    service, owner = exchange.service, exchange.owner
    news: asyncio.Queue[tuple[int, list[SampledToken]] | Outcome | Exception | None] = asyncio.Queue()

    async def follow(place: int, request_id: str) -> None:
        try:
            async for tokens in service.futures.follow(request_id, owner):
                news.put_nowait((place, tokens))
            news.put_nowait(await service.futures.wait(request_id, owner, None))
        except ServerError as error:
            news.put_nowait(error)

    async def watch() -> None:
        await _gone(exchange.request)
        news.put_nowait(ClientDisconnect())

    tasks = [asyncio.create_task(follow(i, sample.request_id)) for i, sample in enumerate(samples)]
    tasks.append(asyncio.create_task(watch()))
    unfinished = len(samples)
    try:
        while unfinished:
            new = await news.get()
            if isinstance(new, Exception):
                raise new
            if isinstance(new, tuple):
                yield new
            else:
                _check(new)
                unfinished -= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _unless_gone(request: Request, awaitable: Awaitable[T]) -> T:
    """What is awaited, unless the client leaves first.

    Raises:
        ClientDisconnect: it did.
    """
    wanted, gone = asyncio.ensure_future(awaitable), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({wanted, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not wanted.done():
            raise ClientDisconnect
        return wanted.result()
    finally:
        wanted.cancel()
        gone.cancel()
        await asyncio.gather(wanted, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    """Return when the client has closed its connection. Its request must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _response(outcome: Outcome | None) -> SampleResponse:
    return decode_sample_response(_check(outcome))


def _check(outcome: Outcome | None) -> bytes:
    """The result of a sample that went well."""
    if outcome is None:
        raise HTTPException(503, "the server is stopping; ask again when it is back")
    if isinstance(outcome, Failed):
        raise (BadRequest if outcome.category == "user" else EngineFailure)(outcome.message)
    return outcome.body
