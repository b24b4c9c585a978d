"""Answers: what was sampled, in the shape that was asked for, in one piece or as events.

Both kinds of completion are answered here; what differs between them is their `Shape`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from fastapi import HTTPException, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from tinkerlite.types import SampleResponse
from tinkerlite_server.engine.protocols import SampleWork, Tokenizer
from tinkerlite_server.errors import EngineFailure, ServerError
from tinkerlite_server.routes.exchange import reply
from tinkerlite_server.routes.openai.asking import Asked
from tinkerlite_server.routes.openai.models import Weights
from tinkerlite_server.routes.openai.refusals import error_body
from tinkerlite_server.routes.openai.running import Exchange, finished, followed, submitted
from tinkerlite_server.routes.openai.transcript import Piece, Transcript, whole_text
from tinkerlite_server.sample_validation import SampleQuestion

logger = logging.getLogger(__name__)

JSON = dict[str, Any]


class Shape(Protocol):
    """How one kind of completion looks. Choices lack their index and, but for the end, a finish reason."""

    @property
    def id_prefix(self) -> str:
        """What its ids begin with."""
        ...

    @property
    def whole(self) -> str:
        """The `object` of an answer in one piece."""
        ...

    @property
    def part(self) -> str:
        """The `object` of an event."""
        ...

    @property
    def drops_sample(self) -> bool:
        """Whether the one token that was sampled was not asked for."""
        ...

    def choice(self, place: int, piece: Piece, response: SampleResponse) -> JSON:
        """A whole completion of the prompt at a place."""
        ...

    def opening(self, place: int) -> JSON | None:
        """What comes before the first token of a completion."""
        ...

    def growth(self, place: int, piece: Piece) -> JSON:
        """What a completion has grown by."""
        ...

    def ending(self) -> JSON:
        """An empty piece, for the finish reason to go with."""
        ...


async def answer(
    exchange: Exchange,
    asked: Asked,
    weights: Weights,
    questions: Sequence[SampleQuestion],
    tokenizer: Tokenizer,
    shape: Shape,
) -> Response:
    """Sample, and answer in the way that was asked for.

    Raises:
        ServerError: it cannot be done, or failed before there was anything to send.
    """
    envelope = {
        "id": f"{shape.id_prefix}-{secrets.token_hex(12)}",
        "object": shape.part if asked.stream else shape.whole,
        "created": int(time.time()),
        "model": asked.model,
    }
    if asked.stream:
        events = _events(exchange, asked, weights, questions, tokenizer, shape, envelope)
        # What fails before there is a token is answered with its status, not within a stream.
        return EventStream(await anext(events), events)
    with submitted(exchange, weights, questions) as samples:
        responses = await finished(exchange, samples)
        works = [sample.work for sample in samples]
        # Not on the event loop: long texts with alternatives at every token take a while.
        choices = await asyncio.to_thread(_choices, works, responses, tokenizer, shape)
    sampled = sum(len(sequence.tokens) for response in responses for sequence in response.sequences)
    usage = _usage(works, 0 if shape.drops_sample else sampled)
    return reply({**envelope, "choices": choices, "usage": usage})


def _choices(
    works: Sequence[SampleWork], responses: Sequence[SampleResponse], tokenizer: Tokenizer, shape: Shape
) -> list[JSON]:
    choices: list[JSON] = []
    for place, (work, response) in enumerate(zip(works, responses, strict=True)):
        for sequence in response.sequences:
            piece, reason = Piece(), "length"
            if not shape.drops_sample:
                piece, reason = whole_text(_transcript(work, tokenizer), sequence), sequence.stop_reason
            choice = shape.choice(place, piece, response)
            choices.append({"index": len(choices), **choice, "finish_reason": reason})
    return choices


async def _events(
    exchange: Exchange,
    asked: Asked,
    weights: Weights,
    questions: Sequence[SampleQuestion],
    tokenizer: Tokenizer,
    shape: Shape,
    envelope: Mapping[str, Any],
) -> AsyncGenerator[bytes, None]:
    """Events as bytes. Raises what fails before the first; later failures are events themselves."""
    with_usage = asked.stream_options is not None and asked.stream_options.include_usage
    usage: JSON = {"usage": None} if with_usage else {}

    def event(index: int, choice: JSON, reason: str | None = None) -> bytes:
        return _event({**envelope, "choices": [{"index": index, **choice, "finish_reason": reason}], **usage})

    with submitted(exchange, weights, questions) as samples:
        transcripts: dict[int, Transcript] = {}
        sampled = 0
        try:
            async with aclosing(followed(exchange, samples)) as news:
                async for place, tokens in news:
                    work = samples[place].work
                    sampled += len(tokens)
                    for token in tokens:
                        index = place * asked.count + token.index
                        if index not in transcripts:
                            transcripts[index] = _transcript(work, tokenizer)
                            opening = shape.opening(place)
                            if opening is not None:
                                yield event(index, opening)
                        piece = transcripts[index].add(
                            token.token, token.logprob, token.topk, token.stop_reason
                        )
                        if piece:
                            yield event(index, shape.growth(place, piece))
                        if token.stop_reason is not None:
                            yield event(index, shape.ending(), token.stop_reason)
            if with_usage:
                works = [sample.work for sample in samples]
                yield _event({**envelope, "choices": [], "usage": _usage(works, sampled)})
        except (ServerError, HTTPException) as error:
            if not transcripts:
                raise
            logger.warning("a stream of %s ended early: %s", envelope["model"], error)
            yield _event(_failure(error))
        yield b"data: [DONE]\n\n"


def _failure(error: ServerError | HTTPException) -> JSON:
    if isinstance(error, HTTPException):
        return error_body(error.status_code, str(error.detail))
    return error_body(500 if isinstance(error, EngineFailure) else 400, error)


def _event(data: JSON) -> bytes:
    return b"data: " + json.dumps(data, allow_nan=False).encode() + b"\n\n"


def _transcript(work: SampleWork, tokenizer: Tokenizer) -> Transcript:
    return Transcript(tokenizer, work.stop_ids, work.stop_strings)


def _usage(works: Sequence[SampleWork], sampled: int) -> JSON:
    """Tokens read and sampled; the token that stops a completion counts, though it is not shown."""
    read = sum(len(work.prompt) for work in works)
    return {"prompt_tokens": read, "completion_tokens": sampled, "total_tokens": read + sampled}


class EventStream(StreamingResponse):
    """Server-sent events, the first of them made already. Closes their source, however it ends."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        # Proxies would otherwise collect events, and send many at once.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(rest, headers=headers, media_type="text/event-stream")
        self._first = first
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them. That the client left is noticed where they are made."""
        async with aclosing(self._rest) as rest:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            async for event in rest:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
