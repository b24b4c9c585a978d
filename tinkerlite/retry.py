"""Which failures are worth repeating, when, and for how long.

Everything sent through here is safe to send twice: the protocol recognises an operation by its
`seq_id`, and a request for a result by its id; a deletion is done when there is nothing left to delete.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tinkerlite.errors import APIConnectionError, APIStatusError, BillingError, RateLimitError

logger = logging.getLogger("tinkerlite")

T = TypeVar("T")

MIN_BACKOFF_SECONDS = 0.05
MAX_BACKOFF_SECONDS = 30.0
_NEVER_BETTER = 501


def is_transient(error: BaseException) -> bool:
    """Whether repeating the same request may succeed: no answer, 408, 425, 429 or 5xx."""
    if isinstance(error, APIStatusError):
        status = error.status_code
        return status in (408, 425, 429) or (status >= 500 and status != _NEVER_BETTER)
    return isinstance(error, APIConnectionError)


def backoff_seconds(attempt: int, first_seconds: float, error: BaseException | None) -> float:
    """The wait after the `attempt`-th failure (from 1): the server's Retry-After, else 1, 2, 4 ... 30."""
    if isinstance(error, APIStatusError) and error.retry_after_seconds is not None:
        return max(error.retry_after_seconds, MIN_BACKOFF_SECONDS)
    return min(first_seconds * 2.0 ** min(attempt - 1, 30), MAX_BACKOFF_SECONDS)


def jittered(seconds: float) -> float:
    """A little longer, by chance, so that clients that were refused together do not return together."""
    return seconds * random.uniform(1.0, 1.1)


class UnpaidBill:
    """402: the account cannot pay now. Waited out, since that can be put right in the meantime."""

    def __init__(self, pause_seconds: float, longest_seconds: float) -> None:
        self._pause_seconds = pause_seconds
        self._longest_seconds = longest_seconds

    async def wait_out(self, send: Callable[[], Awaitable[T]]) -> T:
        """Call `send` again and again while the answer is 402.

        Raises:
            BillingError: for longer than the server wants its clients to wait.
        """
        waited = 0.0
        while True:
            try:
                return await send()
            except BillingError as error:
                if waited + self._pause_seconds > self._longest_seconds:
                    error.add_note(f"Waited {waited:.0f} s for the account to be able to pay.")
                    raise
                if not waited:
                    logger.warning("waiting, since the account cannot pay: %s", error)
            await asyncio.sleep(self._pause_seconds)
            waited += self._pause_seconds


async def resend(
    send: Callable[[], Awaitable[T]],
    *,
    first_seconds: float,
    budget_seconds: float,
    attempt_seconds: float,
    busy_is_final: bool = False,
) -> T:
    """Call `send` until it succeeds, fails for good, or another wait would pass the budget.

    With `busy_is_final`, a 429 fails for good. A failed attempt counts for at most `attempt_seconds`:
    longer than until its timeout, it transferred something, or this process was suspended.

    Raises:
        APIError: the last failure, with a note on how often it was tried.
    """
    from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return jittered(backoff_seconds(state.attempt_number, first_seconds, error))

    def is_worth_it(error: BaseException) -> bool:
        return is_transient(error) and not (busy_is_final and isinstance(error, RateLimitError))

    attempts, asked, lost_seconds = 0, 0.0, 0.0

    def is_over(state: RetryCallState) -> bool:
        nonlocal lost_seconds
        lost_seconds += min(time.monotonic() - asked, attempt_seconds)
        if lost_seconds + state.upcoming_sleep >= budget_seconds:
            return True
        lost_seconds += state.upcoming_sleep
        return False

    try:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(is_worth_it),
            wait=wait,
            stop=is_over,
            reraise=True,
        ):
            attempts += 1
            asked = time.monotonic()
            with attempt:
                return await send()
    except (APIConnectionError, APIStatusError) as error:
        if is_worth_it(error):
            error.add_note(
                f"Tried {attempts} times in {lost_seconds:.1f} s; the client gives up after "
                f"{budget_seconds:g} s."
            )
        raise
    raise AssertionError("tenacity either returns or raises")
