"""Threads for blocking calls, on behalf of the background loop.

The standard pool joins its threads when the interpreter exits, so a stuck call would hang the exit,
and it refuses work from then on, so a local server could not be stopped in order. This one does
neither. Knows nothing about what it runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MOST_THREADS = 32


class DaemonPool(ThreadPoolExecutor):
    """An executor of daemon threads, started as they are needed and never joined.

    A ThreadPoolExecutor by name only, as event loops accept no other kind.
    """

    def __init__(self) -> None:
        super().__init__(1)
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._free = threading.Semaphore(0)
        self._started = 0

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a call in a thread. Called from one thread only, the loop's."""
        future: Future[T] = Future()
        self._calls.put((future, partial(fn, *args, **kwargs)))
        if not self._free.acquire(blocking=False) and self._started < MOST_THREADS:
            self._started += 1
            threading.Thread(target=self._work, name=f"tinkerlite-{self._started}", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Nothing: the threads end with the process."""

    def _work(self) -> None:
        while True:
            future, call = self._calls.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # noqa: BLE001 - whoever waits gets it
                    future.set_exception(error)
            del future, call
            self._free.release()
