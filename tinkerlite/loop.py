"""One background thread with one event loop, which does all the waiting.

Calls from any thread hand it coroutines. That is why a blocking call works inside a running
loop (a notebook's), and why heartbeats go on while user code computes.

Knows nothing about HTTP or the protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, MutableSet
from concurrent.futures import Future
from typing import Any, TypeVar

from tinkerlite.errors import ClientClosedError, TinkerError
from tinkerlite.threads import DaemonPool

logger = logging.getLogger("tinkerlite")

T = TypeVar("T")

EXIT_PATIENCE_SECONDS = 5.0
"""At interpreter exit: how long open connections and a local server may take to close."""


class ToldFuture(Future[T]):
    """A standard future that says when somebody gets its error, by calling or by awaiting."""

    hear: Callable[[BaseException], None] | None = None

    def result(self, timeout: float | None = None) -> T:
        """As of any future."""
        self.exception(timeout)
        return super().result()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As of any future."""
        error = super().exception(timeout)
        if error is not None and self.hear is not None:
            self.hear(error)
        return error


class BackgroundLoop:
    """An event loop in a daemon thread. Use `background_loop()`; one serves the whole process."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(DaemonPool())
        self._closing: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="tinkerlite", daemon=True)
        self._thread.start()
        # Finalizers run at exit, latest first: those of connections come before this one.
        weakref.finalize(self, self._stop)

    def submit(
        self, coroutine: Coroutine[Any, Any, T], group: MutableSet[asyncio.Task[Any]] | None = None
    ) -> ToldFuture[T]:
        """Start a coroutine on the loop; submissions of one thread start in order.

        `group`, if given, gets the task, so that it can be cancelled with others.

        The future cannot be cancelled: half-sent work would leave a training run with a hole in
        its sequence.

        Raises:
            TinkerError: this is a forked child, which has no copy of the thread.
        """
        future = ToldFuture[T]()
        future.set_running_or_notify_cancel()

        def start() -> None:
            task = self._loop.create_task(coroutine)
            if group is not None:
                group.add(task)
            task.add_done_callback(lambda done: _transfer(done, future))

        try:
            check_process(self._pid)
            self._loop.call_soon_threadsafe(start)
        except RuntimeError as error:
            coroutine.close()
            raise ClientClosedError("the interpreter is shutting down") from error
        except TinkerError:
            coroutine.close()
            raise
        return future

    def call(
        self, coroutine: Coroutine[Any, Any, T], group: MutableSet[asyncio.Task[Any]] | None = None
    ) -> T:
        """Run a coroutine on the loop and block until it is done."""
        if self.is_current_thread:
            coroutine.close()
            raise TinkerError("a blocking call in a future's callback would wait for itself; use a thread")
        return self.submit(coroutine, group).result()

    def close_soon(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a clean-up on the loop, not waiting for it; safe in finalizers, on any thread."""

        def start() -> None:
            task = self._loop.create_task(_closing(close))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

        if os.getpid() == self._pid:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and everything with it
                self._loop.call_soon_threadsafe(start)

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller runs on the loop's thread, where blocking would block everything."""
        return threading.current_thread() is self._thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            while self._goes_on():
                pass
        finally:
            self._loop.close()

    def _goes_on(self) -> bool:
        """Run the loop until it is stopped, or thrown out of: asyncio lets these two through once whoever
        waits has them, and everybody else still counts on the loop."""
        try:
            self._loop.run_forever()
        except (SystemExit, KeyboardInterrupt):
            return True
        return False

    def _stop(self) -> None:
        if os.getpid() != self._pid or not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._drain(), self._loop)
        self._thread.join(2 * EXIT_PATIENCE_SECONDS)

    async def _drain(self) -> None:
        if self._closing:
            await asyncio.wait(self._closing, timeout=EXIT_PATIENCE_SECONDS)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=EXIT_PATIENCE_SECONDS / 2)
        self._loop.stop()


def check_process(pid: int) -> None:
    """Raises TinkerError in a process forked from `pid`: it has no copy of the thread."""
    if os.getpid() != pid:
        raise TinkerError("this client was made before a fork; make a new one in the child process")


async def _closing(close: Callable[[], Coroutine[Any, Any, None]]) -> None:
    try:
        await close()
    except Exception:  # nobody waits for it
        logger.exception("closing a connection failed")


def _transfer(task: asyncio.Task[T], future: Future[T]) -> None:
    if task.cancelled():
        future.set_exception(ClientClosedError("the client was closed before the request had finished"))
    elif (error := task.exception()) is not None:
        future.set_exception(error)
    else:
        future.set_result(task.result())


_lock = threading.Lock()
_current: BackgroundLoop | None = None


def background_loop() -> BackgroundLoop:
    """The process's loop, started on first use."""
    global _current
    with _lock:
        if _current is None:
            _current = BackgroundLoop()
        return _current


def _forget() -> None:
    """In a forked child: the thread is gone, and the lock may have been held."""
    global _current, _lock
    _current, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
