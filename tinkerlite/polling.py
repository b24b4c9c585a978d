"""Waiting for one result: `retrieve_future` until the server has it.

The server holds each poll until there is news; what it answers decides (protocol, "Futures").
Knows nothing about what was asked for: a `ResultType` reads the result.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast, get_args

import httpx

from tinkerlite.config import ClientConfig
from tinkerlite.errors import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    InvalidRequest,
    NotFoundError,
    RequestErrorCategory,
    RequestFailedError,
    ResultGoneError,
    StuckRequestError,
)
from tinkerlite.progress import ProgressClock, Waiting
from tinkerlite.retry import backoff_seconds, is_transient
from tinkerlite.transport import Transport, read_json
from tinkerlite.wire import PROTOBUF_CONTENT_TYPE

T = TypeVar("T")

QUICK_SECONDS = 1.0
"""A "still pending" that comes sooner than this was not held: the next poll then waits a little."""
_FIRST_PAUSE_SECONDS = 0.05
_LAST_PAUSE_SECONDS = 1.0


@dataclass(frozen=True)
class ResultType(Generic[T]):
    """How to read one kind of result, in either of the forms in which servers send it."""

    name: str
    from_json: Callable[[dict[str, Any]], T]
    from_protobuf: Callable[[bytes], T] | None = None


class _Pending(Exception):  # noqa: N818 - an answer, not an error
    """The server has no result yet."""


async def await_result(
    transport: Transport,
    config: ClientConfig,
    request_id: str,
    result_type: ResultType[T],
    waiting: Waiting,
    clock: ProgressClock,
) -> T:
    """The result of an accepted request.

    Raises:
        RequestFailedError: the server ran it, and it failed.
        StuckRequestError: neither it nor its siblings moved for `stuck_timeout_seconds`.
        ResultGoneError: the server no longer has the result.
        APIError: the server is lost, or refuses to say.
    """
    pause = _FIRST_PAUSE_SECONDS
    failures = 0
    lost_since: float | None = None
    while True:
        asked = time.monotonic()
        try:
            response = await _poll(transport, config, request_id)
            result = _read(response, request_id, result_type, waiting)
            clock.touch()
            return result
        except _Pending:
            failures, lost_since = 0, None
            was_held = time.monotonic() - asked >= QUICK_SECONDS
            pause = _FIRST_PAUSE_SECONDS if was_held else min(2 * pause, _LAST_PAUSE_SECONDS)
            wait = pause
        except (APIConnectionError, APIStatusError) as error:
            if not is_transient(error):
                raise _explained(error, request_id, result_type.name) from error.__cause__
            if isinstance(error, APIStatusError) and error.status_code == 408:
                wait = pause
                continue
            failures += 1
            lost_since = lost_since or asked
            wait = backoff_seconds(failures, config.first_backoff_seconds, error)
            if time.monotonic() + wait - lost_since > config.reconnect_timeout_seconds:
                error.add_note(
                    f"The result of {result_type.name} (request {request_id}) could not be fetched for "
                    f"{config.reconnect_timeout_seconds:g} s (ClientConfig.reconnect_timeout_seconds)."
                )
                raise
        idle = clock.idle_seconds(waiting)
        if idle > config.stuck_timeout_seconds:
            raise StuckRequestError(
                f"{result_type.name} (request {request_id}): no progress for {idle:.0f} s; the queue is "
                f"{waiting.queue}. If the server is merely slow, raise ClientConfig.stuck_timeout_seconds."
            )
        await asyncio.sleep(wait)
