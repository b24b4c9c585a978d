"""Waiting for one result: `retrieve_future` until the server has it.

The server holds each poll until there is news; what it answers decides. Knows nothing about what
was asked for: a `ResultType` reads the result.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from tinkerlite.answers import read_json
from tinkerlite.config import ClientConfig
from tinkerlite.errors import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    InvalidRequest,
    NotFoundError,
    RequestErrorCategory,
    RequestFailedError,
    StuckRequestError,
)
from tinkerlite.progress import ProgressClock, Waiting
from tinkerlite.retry import backoff_seconds, is_transient, jittered
from tinkerlite.wire import PROTOBUF_CONTENT_TYPE

if TYPE_CHECKING:
    import httpx

    from tinkerlite.transport import Transport

T = TypeVar("T")

HELD_SECONDS = 1.0
"""A "still pending" that comes sooner was not held by the server, and the client paces itself."""
FIRST_PAUSE_SECONDS = 0.05
LAST_PAUSE_SECONDS = 1.0


@dataclass(frozen=True)
class ResultType(Generic[T]):
    """How to read one kind of result, in either of the forms in which servers send it."""

    name: str
    from_json: Callable[[dict[str, Any]], T]
    from_protobuf: Callable[[bytes], T] | None = None


async def await_result(
    transport: Transport,
    config: ClientConfig,
    request_id: str,
    result_type: ResultType[T],
    waiting: Waiting,
    clock: ProgressClock,
) -> T:
    """The result of an accepted request.

    `clock` is shared by all requests of one training run or sampler: a long queue is no reason
    to give up as long as it moves. Nor does time count in which the server was away.

    Raises:
        RequestFailedError: the server ran it, and it failed.
        StuckRequestError: neither it nor its siblings moved for `stuck_timeout_seconds`, or for
            `active_timeout_seconds` while the server says that it is at work.
        ResultGoneError: the server no longer has the result.
        APIError: the server is lost, or its answer is not the protocol's.
    """
    pace = Pace(config)
    pending_since: float | None = None
    while True:
        asked = time.monotonic()
        try:
            response = await _poll(transport, config, request_id, waiting)
        except (APIConnectionError, APIStatusError) as error:
            if not is_transient(error):
                if isinstance(error, NotFoundError):
                    error.add_note("The server does not know this request; it may have been restarted.")
                raise
            pause = pace.after_failure(error, asked, f"{result_type.name} (request {request_id})")
            pending_since = None
        else:
            if response is not None:
                clock.touch()
                return _read(response, request_id, result_type)
            pause = pace.after_pending(time.monotonic() - asked)
            pending_since = asked if pending_since is None else pending_since
            idle = clock.idle_seconds(pending_since)
            setting = "active_timeout_seconds" if waiting.queue_state == "active" else "stuck_timeout_seconds"
            if idle > getattr(config, setting):
                raise StuckRequestError(
                    f"{result_type.name} (request {request_id}): no progress for {idle:.0f} s; the queue "
                    f"is {waiting.queue}. If the server is merely slow, raise ClientConfig.{setting}."
                )
        await asyncio.sleep(pause)


class Pace:
    """How many seconds to wait between two polls."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._pause = FIRST_PAUSE_SECONDS
        self._failures = 0
        self._lost_seconds = 0.0

    def after_pending(self, held_seconds: float) -> float:
        """Nothing after a poll that was held; after quick answers more and more, up to a second."""
        self._failures = 0
        if held_seconds >= HELD_SECONDS:
            self._pause = FIRST_PAUSE_SECONDS
            return 0.0
        pause, self._pause = self._pause, min(2 * self._pause, LAST_PAUSE_SECONDS)
        return pause

    def after_failure(self, error: APIConnectionError | APIStatusError, asked: float, what: str) -> float:
        """As `backoff_seconds`; raises the error once the server has been lost for too long."""
        if self._failures == 0:
            self._lost_seconds = 0.0
        self._failures += 1
        pause = jittered(backoff_seconds(self._failures, self._config.first_backoff_seconds, error))
        budget = self._config.reconnect_timeout_seconds
        # What a poll took beyond its timeout, this process was suspended, and the server not lost.
        self._lost_seconds += min(time.monotonic() - asked, self._config.poll_timeout_seconds) + pause
        if self._lost_seconds > budget:
            error.add_note(
                f"{what}: its result could not be fetched in {self._failures} attempts; the client gives "
                f"up after {budget:g} s (ClientConfig.reconnect_timeout_seconds)."
            )
            raise error
        return pause


async def _poll(
    transport: Transport, config: ClientConfig, request_id: str, waiting: Waiting
) -> httpx.Response | None:
    """One long poll: the answer that holds the result, or None while there is none."""
    for _ in range(2):
        try:
            response = await transport.request(
                "POST",
                "retrieve_future",
                json={"request_id": request_id, "allow_metadata_only": False},
                headers={"Accept": f"{PROTOBUF_CONTENT_TYPE}, application/json"},
                timeout_seconds=config.poll_timeout_seconds,
            )
        except APIStatusError as error:
            if error.status_code != 408:
                raise
            _note_queue(waiting, error.body)
            return None
        if _is_protobuf(response):
            return response
        body = read_json(response)
        if body.get("type") == "try_again":
            _note_queue(waiting, body)
            return None
        # The size of a large result instead of the result, which we did not ask for: ask again.
        if body.get("status") != "complete_metadata":
            return response
    raise APIResponseValidationError(
        message=f"request {request_id}: the server sends the result's size, never the result"
    )


def _read(response: httpx.Response, request_id: str, result_type: ResultType[T]) -> T:
    try:
        if _is_protobuf(response):
            if result_type.from_protobuf is None:
                raise APIResponseValidationError(
                    message=f"{result_type.name}: an answer in protobuf, expected JSON"
                )
            return result_type.from_protobuf(response.content)
        body = read_json(response)
        if "error" in body:
            said = body.get("category")
            known = said in list(RequestErrorCategory)
            category = RequestErrorCategory(said) if known else RequestErrorCategory.Unknown
            message = f"{result_type.name} (request {request_id}) failed: {body['error']}"
            raise RequestFailedError(message, request_id, category)
        return result_type.from_json(body)
    except (InvalidRequest, ValueError, KeyError, TypeError) as error:
        raise APIResponseValidationError(
            message=f"{result_type.name} (request {request_id}): the server's answer cannot be read: {error}"
        ) from error


def _is_protobuf(response: httpx.Response) -> bool:
    return PROTOBUF_CONTENT_TYPE in response.headers.get("content-type", "")


def _note_queue(waiting: Waiting, body: object) -> None:
    if isinstance(body, Mapping):
        fields = cast(Mapping[str, object], body)
        waiting.queue_state = str(fields.get("queue_state") or "unknown")
        reason = fields.get("queue_state_reason")
        waiting.queue_reason = None if reason is None else str(reason)
