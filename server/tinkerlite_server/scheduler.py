"""Scheduler: the engine's one thread, and how training and sampling share it.

They take turns: one training operation (or several merged), then sampling for as long as that
took, so that neither starves the other. Pure Python: neither torch nor HTTP.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from tinkerlite_server.boundary import attempt
from tinkerlite_server.executor import Executor
from tinkerlite_server.futures import FutureTable
from tinkerlite_server.operations import Operation, Refusal, Sample
from tinkerlite_server.sample_queue import SampleQueue
from tinkerlite_server.sampling_lane import SamplingLane
from tinkerlite_server.settings import Limits
from tinkerlite_server.training_lane import TrainingLane

logger = logging.getLogger(__name__)


class Scheduler:
    """The queues of one engine, and the thread that empties them.

    Methods may be called from any thread; `turn` from one at a time.
    """

    def __init__(
        self,
        executor: Executor,
        futures: FutureTable,
        samples: SampleQueue,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._executor = executor
        self._clock = clock
        self._wake = threading.Condition()
        self._training = TrainingLane(executor, futures, limits, self._wake, clock)
        self._sampling = SamplingLane(executor, futures, samples, self._wake)
        self._chores: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    # ---- accepting ----

    def accept(self, operation: Operation, owner: str) -> None:
        """Take responsibility for a training operation: from here on its future will be settled.

        This is where a journal would write, before the caller is told.

        Raises:
            BadRequest: its number was used before.
            UnknownName: its run is not in memory.
            Busy: too many operations of this run are waiting.
        """
        self._training.accept(operation, owner)

    def accept_sample(self, sample: Sample) -> None:
        """Take responsibility for a sample request.

        Raises:
            Busy: too many samples are queued.
        """
        self._sampling.accept(sample)

    def refuse(self, refusal: Refusal, owner: str) -> None:
        """Note that a numbered request was turned down, so that later ones do not wait for it."""
        self._training.refuse(refusal, owner)

    def cancel_sample(self, request_id: str) -> None:
        """Give up a sample request, waiting or running; ids of anything else are ignored."""
        self._sampling.cancel(request_id)

    def end_samples(self, session_id: str, reason: str) -> None:
        """Give up all sample requests of a session that ended."""
        self._sampling.end_session(session_id, reason)

    def free_run(self, model_id: str, reason: str) -> None:
        """Free a run; what still waits in it fails."""
        self._training.close_run(model_id, reason)
        self._later(lambda: self._executor.drop_run(model_id))

    def free_snapshot(self, adapter_id: str) -> None:
        """Free the weights of a sampling session that ended."""
        self._later(lambda: self._executor.drop_snapshot(adapter_id))

    def folders_in_use(self) -> set[str]:
        """Checkpoint folders that accepted sample requests need."""
        return self._sampling.folders_in_use()

    def give_up_gaps(self) -> None:
        """Fail what has waited too long for an operation that never came."""
        self._training.give_up_gaps()

    def wait_longer(self, seconds: float) -> None:
        """Whatever is missing is missing later by so much."""
        self._training.wait_longer(seconds)

    def why_waiting(self, request_id: str) -> str | None:
        """In words, what a pending request waits for; None if there is nothing to say."""
        return self._training.why_waiting(request_id) or self._sampling.why_waiting(request_id)

    # ---- the engine's thread ----

    def start(self) -> None:
        """Begin taking turns."""
        self._thread.start()

    def stop(self, timeout_seconds: float) -> bool:
        """Finish the engine call under way, and stop; False if that takes longer."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def turn(self) -> bool:
        """Training, then sampling for as long as that took. False: there was nothing to do."""
        did_chores = self._do_chores()
        started = self._clock()
        trained = self._training.turn()
        share = self._clock() - started
        started = self._clock()
        sampled = self._sampling.step()
        while sampled and self._clock() - started < share and not self._stopping:
            self._do_chores()
            if not self._sampling.step():
                break
        return did_chores or trained or sampled

    def _main(self) -> None:
        while True:
            with self._wake:
                if not self._has_work():
                    self._sampling.rest()
                self._wake.wait_for(lambda: self._stopping or self._has_work())
                if self._stopping:
                    return
                if not self._training.has_work:  # behind which samples gather anyway
                    self._sampling.gather()
            try:
                self.turn()
            except Exception:  # a defect here must not leave every caller waiting for ever
                logger.exception("the scheduler's turn failed; going on in a second")
                with self._wake:
                    self._wake.wait_for(lambda: self._stopping, timeout=1.0)

    def _has_work(self) -> bool:
        return bool(self._chores) or self._training.has_work or self._sampling.has_work

    def _later(self, chore: Callable[[], None]) -> None:
        with self._wake:
            self._chores.append(chore)
            self._wake.notify()

    def _do_chores(self) -> bool:
        done = False
        while self._chores:
            attempt("freeing memory", self._chores.popleft())
            done = True
        return done
