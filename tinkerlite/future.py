"""APIFuture: work that was asked for and will be done; wait for it by calling or by awaiting.

Knows nothing about what the work is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Generator
from concurrent.futures import Future
from functools import partial
from typing import Any, Generic, TypeVar

from tinkerlite.errors import ClientClosedError
from tinkerlite.loop import background_loop, check_process

logger = logging.getLogger("tinkerlite")

T_co = TypeVar("T_co", covariant=True)


class APIFuture(Generic[T_co]):
    """A result to come. The work goes on whether or not anyone waits.

        output = training.forward_backward(data, "cross_entropy").result()
        output = await training.forward_backward(data, "cross_entropy")

    Both may be repeated, in any thread and in any event loop. To stop waiting (a timeout,
    Ctrl-C, a cancelled task) does not stop the work.
    """

    def __init__(self, future: Future[T_co], label: str = "work") -> None:
        self._future = future
        self._label = label
        self._pid = os.getpid()
        self._started = time.monotonic()
        self._asked_for = False

    def result(self, timeout: float | None = None) -> T_co:
        """Block until the result is there, for at most `timeout` seconds.

        Raises:
            TimeoutError: not there yet; calling again waits longer.
            TinkerError: the work failed; see `tinkerlite.errors`.
        """
        self._ask()
        if not self._future.done() and background_loop().is_current_thread:
            raise RuntimeError(
                f"{self._label}: .result() in a callback of another future would wait for itself; "
                "await it, or wait in a thread of your own"
            )
        try:
            return self._future.result(timeout)
        except TimeoutError:
            if self._future.done():  # the work itself failed with a timeout
                raise
            raise self._not_yet(timeout) from None

    def __await__(self) -> Generator[Any, None, T_co]:
        return self.result_async().__await__()

    async def result_async(self, timeout: float | None = None) -> T_co:
        """`await` with a timeout; errors as for `result`."""
        self._ask()
        if not self._future.done():
            try:
                await asyncio.wait_for(self._arrival(), timeout)
            except TimeoutError:
                raise self._not_yet(timeout) from None
        return self._future.result()

    async def coroutine(self) -> T_co:
        """The same as a coroutine, for functions that insist on one (`asyncio.create_task`)."""
        return await self

    def future(self) -> Future[T_co]:
        """The standard future underneath, for `concurrent.futures.wait` and `as_completed`."""
        self._asked_for = True
        return self._future

    def done(self) -> bool:
        """Whether waiting would return at once."""
        return self._future.done()

    def _arrival(self) -> asyncio.Future[None]:
        """Done when the work is, without its error: asyncio's own chaining would read that even for somebody
        who has stopped waiting, and it would count as heard. Cancelling it does not reach the work."""
        loop = asyncio.get_running_loop()
        arrival: asyncio.Future[None] = loop.create_future()

        def arrive() -> None:
            if not arrival.done():
                arrival.set_result(None)

        def tell(_: Future[Any]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits in it any more
                loop.call_soon_threadsafe(arrive)

        self._future.add_done_callback(tell)
        return arrival

    def _ask(self) -> None:
        self._asked_for = True
        if not self._future.done():
            check_process(self._pid)

    def _not_yet(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(f"{self._label}: no result within {timeout} s; it is still being worked on")

    def __del__(self) -> None:
        if not self._asked_for:
            self._future.add_done_callback(partial(_report_unseen, self._label))

    def __repr__(self) -> str:
        if not self._future.done():
            return f"<APIFuture {self._label}: pending for {time.monotonic() - self._started:.1f} s>"
        if (error := self._future.exception()) is not None:
            return f"<APIFuture {self._label}: failed, {type(error).__name__}: {error}>"
        return f"<APIFuture {self._label}: {self._future.result()!r}>"

    def _repr_html_(self) -> str | None:
        """A notebook shows a finished result as the result would show itself."""
        if not self._future.done() or self._future.exception() is not None:
            return None
        show = getattr(self._future.result(), "_repr_html_", None)
        return None if show is None else show()


def _report_unseen(label: str, future: Future[Any]) -> None:
    """A failure that would vanish, since nobody holds the future any more."""
    error = Future[Any].exception(future)  # not its own: a log is not the caller
    if error is not None and not isinstance(error, ClientClosedError):
        logger.error("%s failed, and nobody asked for its result: %s", label, error)
