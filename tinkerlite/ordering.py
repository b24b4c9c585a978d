"""Order of one training run's operations: sent one after another, as called, numbered from 1.

An operation has its turn until it is sent, not until it is done, so results are waited for side
by side. Numbers are taken when something is sent: what is never sent leaves no hole, on which the
server would wait.

An operation that fails before it is sent, so that the server knows nothing of it, takes with it
whatever was called before the caller heard of that: an optimizer step among them would be one on
part of a batch.

Knows nothing about what the operations are.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, TypeGuard, TypeVar

from tinkerlite.connection import Connection
from tinkerlite.errors import APIStatusError, NotSubmittedError
from tinkerlite.future import APIFuture
from tinkerlite.retry import is_transient

T = TypeVar("T")


def _is_refusal(error: BaseException) -> TypeGuard[APIStatusError]:
    """Whether the server turned the request down, and knows that its number is used up."""
    return isinstance(error, APIStatusError) and not is_transient(error) and not is_unread(error)


def is_unread(error: BaseException) -> bool:
    """Whether the server turned the request down for its size, its key or a bill, before it read the number
    in it."""
    return isinstance(error, APIStatusError) and error.status_code in (401, 402, 413)


class Failures:
    """A run's operations that failed before they were sent, and which of them the caller has heard of."""

    def __init__(self) -> None:
        self.count = 0
        self.heard = 0
        self.last: BaseException | None = None

    def add(self, error: BaseException) -> None:
        """One more."""
        self.count += 1
        self.last = error

    def hear(self, error: BaseException) -> None:
        """The caller got an error: the last failure itself, or of an operation that was not sent for it."""
        count = self.count  # read first, as one may be added meanwhile
        if error is self.last or (error.__cause__ is not None and error.__cause__ is self.last):
            self.heard = count


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
        self.failures = Failures()
        self.gradients_wait = False
        """Whether the server has taken gradients since the last step."""

    def start(self, operation: Callable[[Turn], Coroutine[Any, Any, T]], label: str) -> APIFuture[T]:
        """Put an operation in line. Its first step must be `async with turn`, around the sending."""
        with self._calls:  # calls from several threads have one order
            return self._connection.start(operation(Turn(self, label)), label, self.failures.hear)


class Turn:
    """One operation's place in line; inside `async with`, it is its turn."""

    def __init__(self, line: Turns, label: str) -> None:
        self._line = line
        self._label = label
        self._heard = line.failures.heard

    async def send(self, submit: Callable[[int], Awaitable[T]]) -> T:
        """Send one request under the next number; `submit` is called with it.

        A refusal uses the number up, unless the body was not read. After anything else that is no receipt
        the server may be waiting for it: then no other number may follow, and the run ends.
        """
        line = self._line
        line.sent += 1
        try:
            return await submit(line.sent)
        except BaseException as error:
            if is_unread(error):
                line.sent -= 1
            elif not _is_refusal(error):
                line.lost = error
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
        """Whoever was, or is, called without knowing of this counts on gradients that there will not be.

        For what the server cannot know; about requests that it refused, it tells those behind itself.
        """
        self._line.failures.add(reason)

    def note_gradients(self, *, waiting: bool) -> None:
        """Whether gradients wait for a step on the server, now that this operation was sent."""
        self._line.gradients_wait = waiting

    async def __aenter__(self) -> Turn:
        line = self._line
        await line.turn.acquire()
        if line.lost is not None:
            line.turn.release()
            raise NotSubmittedError(
                f"{self._label} of {line.model_id} was not sent: the server did not answer request "
                f"{line.sent} as it should and may or may not hold it. Go on from a saved state, in a new "
                "training client"
            ) from line.lost
        if line.failures.count > self._heard:
            line.turn.release()
            reason = line.failures.last
            left = "; gradients sent before that, since the last step, count" if line.gradients_wait else ""
            raise NotSubmittedError(
                f"{self._label} of {line.model_id} was not sent: an operation before it failed before it was "
                f"sent ({reason}){left}. What is called from now on is sent again"
            ) from reason
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._line.turn.release()
