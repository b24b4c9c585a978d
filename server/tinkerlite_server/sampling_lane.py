"""SamplingLane: sample requests from acceptance to answer."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from tinkerlite_server.boundary import as_failure, attempt
from tinkerlite_server.engine.protocols import SampledToken, SampleResult
from tinkerlite_server.errors import ServerError
from tinkerlite_server.executor import Executor, sample_answer
from tinkerlite_server.futures import Done, Failed, FutureTable
from tinkerlite_server.operations import Sample
from tinkerlite_server.sample_queue import SampleQueue

GATHER_SECONDS = 0.01
"""How long the next request of several that come together may take: on two busy cores the server reads one in
2 to 5 milliseconds."""


class SamplingLane:
    """One engine's sampling work. `step` belongs to the engine's thread, the rest to any.

    Args:
        wake: the scheduler's lock; notified when there is work.
    """

    def __init__(
        self, executor: Executor, futures: FutureTable, queue: SampleQueue, wake: threading.Condition
    ) -> None:
        self._executor = executor
        self._futures = futures
        self._queue = queue
        self._wake = wake
        self._cancelled: list[str] = []
        self._steps = 0
        """Since the first that had something to sample after a rest."""
        self._together = 0
        """Requests that the first two of them began with: those that came side by side."""
        self._expected = 0
        """How many they were the time before."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything. Under the lock, on the engine's thread."""
        return self._queue.waiting > 0 or bool(self._cancelled) or self._executor.is_sampling

    # ---- accepting ----

    def accept(self, sample: Sample) -> None:
        """Queue a request; see `Scheduler.accept_sample`."""
        with self._wake:
            self._queue.put(sample)
            self._wake.notify()

    def cancel(self, request_id: str, reason: str = "the request was cancelled") -> None:
        """Give up a request, waiting or running; ids of anything else are ignored."""
        with self._wake:
            if not self._queue.withdraw(request_id):
                if self._queue.finish(request_id) is None:
                    return
                self._cancelled.append(request_id)
                self._wake.notify()
        self._futures.settle(request_id, Failed(reason, "user"))

    def end_session(self, session_id: str, reason: str) -> None:
        """Give up what a session asked for: nobody waits for it, and others do behind it."""
        with self._wake:
            request_ids = self._queue.of_session(session_id)
        for request_id in request_ids:
            self.cancel(request_id, reason)

    def why_waiting(self, request_id: str) -> str | None:
        """In words, where a pending request is; None if it is none of these."""
        with self._wake:
            return self._queue.why_waiting(request_id)

    def folders_in_use(self) -> set[str]:
        """Checkpoint folders that anything accepted samples from."""
        with self._wake:
            return self._queue.folders()

    # ---- running ----

    def rest(self) -> None:
        """There is nothing to do. Under the lock, on the engine's thread."""
        self._expected = self._together or self._expected
        self._steps = self._together = 0

    def gather(self) -> None:
        """Before the first step after a rest: wait for as many requests as came side by side the last time.

        A caller sends the prompts of a step together, and they arrive one by one. The first must not
        be read alone, in a pass that costs nearly as much as one over all. Who sends one at a time
        waits for nobody. Under the lock, on the engine's thread.
        """
        if self._steps:
            return
        while 0 < (arrived := self._queue.waiting) < self._expected:
            if not self._wake.wait_for(
                lambda arrived=arrived: self._queue.waiting != arrived, GATHER_SECONDS
            ):
                return

    def step(self) -> bool:
        """Hand over what fits, and let every running sample get on. False: there was nothing to do."""
        with self._wake:
            cancelled, self._cancelled = self._cancelled, []
            admitted = self._queue.admit()
            self._steps += bool(admitted or self._steps)
            if self._steps <= 2:
                self._together += len(admitted)
        for request_id in cancelled:
            self._cancel(request_id)
        if admitted:
            self._futures.begin(sample.request_id for sample in admitted)
        for sample in admitted:
            started = attempt("sample", lambda sample=sample: self._executor.start_sample(sample))
            if isinstance(started, ServerError):
                self._end(sample.request_id, started)
        if not self._executor.is_sampling:
            return bool(admitted or cancelled)
        results = attempt("sampling", self._executor.sampling_step)
        if isinstance(results, ServerError):
            self._end_all(results)
            return True
        for key, tokens in _by_key(results).items():
            self._futures.report(key, tokens)
        for result in results:
            if isinstance(result, SampledToken):
                continue
            with self._wake:
                known = self._queue.finish(result.key) is not None
            if known:
                answer = attempt("the answer to sample", lambda result=result: sample_answer(result))
                self._futures.settle(result.key, answer if isinstance(answer, Done) else as_failure(answer))
        return True

    def _end(self, request_id: str, error: ServerError) -> None:
        with self._wake:
            self._queue.finish(request_id)
        self._futures.settle(request_id, as_failure(error))

    def _end_all(self, error: ServerError) -> None:
        """The step itself failed: what became of the running samples is not known, so all end here."""
        with self._wake:
            running = self._queue.running()
        for request_id in running:
            self._cancel(request_id)
            self._end(request_id, error)

    def _cancel(self, request_id: str) -> None:
        """What was admitted with it goes on, whatever comes of that."""
        attempt("cancelling a sample", lambda: self._executor.cancel_sample(request_id))


def _by_key(results: Sequence[SampleResult | SampledToken]) -> dict[str, list[SampledToken]]:
    """New tokens by the request that follows them."""
    streams: dict[str, list[SampledToken]] = {}
    for result in results:
        if isinstance(result, SampledToken):
            streams.setdefault(result.key, []).append(result)
    return streams
