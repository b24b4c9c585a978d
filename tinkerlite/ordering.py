"""Order of one training run's operations: sent one after another, as called, numbered from 1.

An operation has its turn until it is sent, not until it is done, so results are waited for side
by side. Numbers are taken when something is sent: what is never sent leaves no hole, on which the
server would wait.

Knows nothing about what the operations are.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, TypeGuard, TypeVar

from tinkerlite.connection import Connection
from tinkerlite.errors import APIConnectionError, APIStatusError, NotSubmittedError
from tinkerlite.future import APIFuture
from tinkerlite.retry import is_transient

T = TypeVar("T")


def is_lost(error: BaseException) -> bool:
    """Whether the server may or may not hold the request that ended so."""
    return is_transient(error) or isinstance(error, asyncio.CancelledError)


def _is_refusal(error: BaseException) -> TypeGuard[APIStatusError]:
    """Whether the server turned the request down, and knows that its number is used up."""
    return isinstance(error, APIStatusError) and not is_lost(error) and not _is_unread(error)


def _is_unread(error: BaseException) -> bool:
    """Whether the server turned the body down for its size: it never saw the number in it."""
    return isinstance(error, APIStatusError) and error.status_code == 413


class Turns:
    """The line in which the operations of one training run stand."""

    def __init__(self, connection: Connection, model_id: str) -> None:
        self._connection = connection
        self._calls = threading.Lock()
        self.model_id = model_id
        self.turn = asyncio.Lock()  # fair: whoever waits longest goes first
        self.sent = 0
        self.lost: BaseException | None = None
        """Why nothing more may be sent."""
        self.dissolved = 0
        """How often everyone in line was sent away, and why last."""
        self.reason: BaseException | None = None

    def start(self, operation: Callable[[Turn], Coroutine[Any, Any, T]], label: str) -> APIFuture[T]:
        """Put an operation in line. Its first step must be `async with turn`, around the sending."""
        with self._calls:  # calls from several threads have one order
            return self._connection.start(operation(Turn(self, label)), label)


class Turn:
    """One operation's place in line; inside `async with`, it is its turn."""

    def __init__(self, line: Turns, label: str) -> None:
        self._line = line
        self._label = label
        self._dissolved = line.dissolved

    async def send(self, submit: Callable[[int], Awaitable[T]]) -> T:
        """Send one request under the next number; `submit` is called with it.

        A refusal uses the number up, unless the body was too large to be read. Without any answer the
        server may be waiting for it: then no other number may follow, and the run ends here.
        """
        line = self._line
        line.sent += 1
        try:
            return await submit(line.sent)
        except (APIConnectionError, APIStatusError, asyncio.CancelledError) as error:
            if is_lost(error):
                line.lost = error
            elif _is_unread(error):
                line.sent -= 1
            raise

    async def send_together(
        self, submits: Sequence[Callable[[int], Coroutine[Any, Any, T]]]
    ) -> list[T | APIStatusError]:
        """Send several requests side by side, under consecutive numbers: the first when the others
        have arrived, so that a server which runs them in order has them all when it can begin.

        The first is sent even where another was refused, since nothing may be missing before it.

        Returns:
            For each what came back, or how it was refused.
        """
        line = self._line
        first = line.sent + 1
        line.sent += len(submits)
        try:
            later = [submit(first + place) for place, submit in enumerate(submits) if place > 0]
            outcomes = await asyncio.gather(*later, return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, BaseException) and not _is_refusal(outcome):
                    raise outcome
            outcomes[:0] = await asyncio.gather(submits[0](first), return_exceptions=True)
            if isinstance(outcomes[0], BaseException) and not _is_refusal(outcomes[0]):
                raise outcomes[0]
        except BaseException as error:  # some of the numbers may be missing on the server
            line.lost = error
            raise
        return [each for each in outcomes if not isinstance(each, BaseException) or _is_refusal(each)]

    def send_others_away(self, reason: BaseException) -> None:
        """Whoever is in line now counts on gradients that there will not be, and is not sent.

        For what the server cannot know; about requests that it refused, it tells those behind itself.
        """
        self._line.dissolved += 1
        self._line.reason = reason

    async def __aenter__(self) -> Turn:
        line = self._line
        await line.turn.acquire()
        if line.lost is not None:
            line.turn.release()
            raise NotSubmittedError(
                f"{self._label} of {line.model_id} was not sent: the server did not answer request "
                f"{line.sent} and may or may not hold it. Go on from a saved state, in a new training client"
            ) from line.lost
        if line.dissolved != self._dissolved:
            line.turn.release()
            raise NotSubmittedError(
                f"{self._label} of {line.model_id} was not sent: it was called after an operation that then "
                f"failed before it was sent ({line.reason}). What is called from now on is sent again"
            ) from line.reason
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._line.turn.release()
