"""TrainingLane: the operations of all training runs, and which of them runs next.

**Order.** A run's operations run strictly by `seq_id`; runs are served in rotation. When it is a
forward_backward's turn, those at the heads of other runs on the same base model and loss join
the same engine call, and a large one is cut into several.

**Failure.** An operation that fails fails its own future, and later ones of the run still run,
since the client has sent them already and decides for itself. Two exceptions. When gradients
went missing (a forward_backward failed, was refused, or never came), the next optim_step fails
too, and the incomplete gradients are dropped: a step on part of a batch would look like success
and be wrong. And when a run could not be made, everything sent to it fails with that reason.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeGuard

from tinkerlite_server.boundary import as_failure, attempt
from tinkerlite_server.engine.protocols import TrainOutput
from tinkerlite_server.errors import BadRequest, ServerError, UnknownName
from tinkerlite_server.executor import Executor
from tinkerlite_server.forward_backward import Progress
from tinkerlite_server.futures import Done, Failed, FutureTable, Outcome
from tinkerlite_server.operations import (
    CreateRun,
    ForwardBackward,
    LoadRun,
    LostGradients,
    Operation,
    OptimStep,
    Refusal,
    UnloadRun,
)
from tinkerlite_server.run_queue import RunQueue
from tinkerlite_server.settings import Limits


class TrainingLane:
    """One engine's training work. `turn` belongs to the engine's thread, the rest to any.

    Args:
        wake: the scheduler's lock; notified when there is work.
    """

    def __init__(
        self,
        executor: Executor,
        futures: FutureTable,
        limits: Limits,
        wake: threading.Condition,
        clock: Callable[[], float],
    ) -> None:
        self._executor = executor
        self._futures = futures
        self._limits = limits
        self._wake = wake
        self._clock = clock
        self._runs: OrderedDict[str, RunQueue] = OrderedDict()  # the least recently served first
        self._progress: dict[str, Progress] = {}

    @property
    def has_work(self) -> bool:
        """Whether a turn would do anything. Under the lock."""
        return any(queue.head() is not None for queue in self._runs.values())

    # ---- accepting ----

    def accept(self, operation: Operation, owner: str) -> None:
        """Queue an operation; see `Scheduler.accept`."""
        with self._wake:
            queue = self._runs.get(operation.model_id)
            if _makes_run(operation):
                if queue is not None:
                    raise BadRequest(f"training run {operation.model_id!r} exists already")
                queue = RunQueue(operation.model_id, owner, operation.base_model)
            if queue is None:
                raise UnknownName(f"training run {operation.model_id!r} is not in memory")
            queue.put(operation, now=self._clock(), limit=self._limits.max_queued_operations)
            self._runs[operation.model_id] = queue
            self._wake.notify()

    def refuse(self, refusal: Refusal, owner: str) -> None:
        """Note that a numbered request was turned down, so that later ones do not wait for it."""
        with self._wake:
            queue = self._runs.get(refusal.model_id)
            if queue is not None and queue.owner == owner:
                queue.refuse(refusal, now=self._clock())
                self._wake.notify()

    def close_run(self, model_id: str, reason: str) -> None:
        """Take no more operations for a run; what still waits in it fails."""
        self._drop(model_id, Failed(f"training run {model_id!r} has ended: {reason}", "user"))

    def give_up_gaps(self) -> None:
        """Fail what has waited too long for an operation that never came."""
        now, patience = self._clock(), self._limits.gap_seconds
        with self._wake:
            gaps = [(q.model_id, q.give_up_gap(now=now, after_seconds=patience)) for q in self._runs.values()]
        for model_id, (missing, stranded) in gaps:
            why = (
                f"operation {missing} of {model_id!r} did not arrive within {patience:.0f} s, so what was "
                "sent after it is given up; send it again under new numbers"
            )
            self._fail(stranded, Failed(why, "unknown"))

    def wait_longer(self, seconds: float) -> None:
        """Whatever is missing is missing later by so much."""
        with self._wake:
            for queue in self._runs.values():
                queue.wait_longer(seconds)

    def why_waiting(self, request_id: str) -> str | None:
        """In words, what a pending operation waits for; None if it is none of these."""
        with self._wake:
            words = (queue.why_waiting(request_id) for queue in self._runs.values())
            return next((found for found in words if found), None)

    # ---- running ----

    def turn(self) -> bool:
        """Run one operation, or several forward_backwards merged. False: there was nothing to do."""
        with self._wake:
            picked = self._pick()
            merged = [op for op in picked if isinstance(op, ForwardBackward)]
            # Taken while locked: a run may be closed at any time, and its progress with it.
            progress = [self._progress[operation.request_id] for operation in merged]
        if picked:
            self._futures.begin(operation.request_id for operation in picked)
        if merged:
            self._forward_backward(merged, progress)
        elif picked:
            self._run_alone(picked[0])
        return bool(picked)

    def _pick(self) -> list[Operation]:
        """The head of the run that was served longest ago, and the heads that can join it."""
        picked: list[Operation] = []
        room = self._limits.turn_tokens
        for queue in self._runs.values():
            head = queue.head()
            if head is None or (picked and (room <= 0 or not self._can_merge(picked[0], head))):
                continue
            picked.append(head)
            if not isinstance(head, ForwardBackward):
                break
            room -= self._progress.setdefault(head.request_id, Progress(head.batch)).remaining_tokens
        for operation in picked:
            self._runs.move_to_end(operation.model_id)
        return picked

    def _can_merge(self, first: Operation, other: Operation) -> bool:
        return (
            isinstance(first, ForwardBackward)
            and isinstance(other, ForwardBackward)
            and self._runs[first.model_id].base_model == self._runs[other.model_id].base_model
            and first.batch.loss_fn == other.batch.loss_fn
            and first.batch.forward_only == other.batch.forward_only
        )

    def _forward_backward(self, operations: list[ForwardBackward], progress: list[Progress]) -> None:
        room = self._limits.turn_tokens
        batches = []
        for each in progress:
            batches.append(each.cut(room))
            room -= sum(len(example.tokens) for example in batches[-1].examples)
        outputs = attempt("forward_backward", lambda: self._executor.forward_backward(batches))
        if isinstance(outputs, ServerError):
            outputs = [outputs] * len(operations)
        for operation, each, output in zip(operations, progress, outputs, strict=True):
            self._take_output(operation, each, output)

    def _take_output(
        self, operation: ForwardBackward, progress: Progress, output: TrainOutput | ServerError
    ) -> None:
        answer: bytes | ServerError | None = None
        if isinstance(output, ServerError):
            answer = output
        else:
            progress.add(output)
            if progress.finished:
                answer = attempt("the answer to forward_backward", progress.result)
        if isinstance(answer, bytes):
            self._finish(operation, Done(answer, "forward_backward"))
        elif answer is not None:
            failure = as_failure(answer)
            failure = Failed(progress.locate(failure.message), failure.category)
            lost = LostGradients(
                f"forward_backward {operation.seq_id} failed: {failure.message}", failure.category
            )
            self._finish(operation, failure, lost=None if operation.batch.forward_only else lost)

    def _run_alone(self, operation: Operation) -> None:
        queue = self._runs.get(operation.model_id)
        lost = queue.lost_gradients if queue else None
        if isinstance(operation, OptimStep) and lost is not None:
            outcome = self._refuse_step(operation, lost)
        else:
            done = attempt(type(operation).__name__, lambda: self._executor.run(operation))
            outcome = as_failure(done) if isinstance(done, ServerError) else done
        failed = isinstance(outcome, Failed)
        if failed and isinstance(operation, OptimStep):
            # What it left is not what was sent, and the client is told to send the batch again.
            attempt("dropping gradients", lambda: self._executor.discard_gradients(operation.model_id))
        # A step ends the accumulation however it went; a load that failed left the run as it was.
        afresh = isinstance(operation, OptimStep) or (isinstance(operation, LoadRun) and not failed)
        if queue is not None and afresh:
            queue.lost_gradients = None
        if failed and _makes_run(operation):
            # Before the caller is told, who would else find a run that could not be made.
            attempt("forgetting a run", lambda: self._executor.forget_run(operation.model_id))
        self._finish(operation, outcome)
        if failed and _makes_run(operation):
            why = f"training run {operation.model_id!r} could not be made: {outcome.message}"
            self._drop(operation.model_id, Failed(why, outcome.category))
        elif isinstance(operation, UnloadRun) and not failed:
            self.close_run(operation.model_id, "it was unloaded")

    def _refuse_step(self, operation: OptimStep, lost: LostGradients) -> Outcome:
        dropped = attempt("optim_step", lambda: self._executor.discard_gradients(operation.model_id))
        if isinstance(dropped, ServerError):
            return as_failure(dropped)
        return Failed(
            f"no step was taken, as gradients are missing ({lost.reason}); those that were there are "
            "dropped. Send the whole batch again, then optim_step",
            lost.category,
        )

    def _finish(self, operation: Operation, outcome: Outcome, *, lost: LostGradients | None = None) -> None:
        """Settle the head of a run, and let the next one come up."""
        with self._wake:
            self._progress.pop(operation.request_id, None)
            queue = self._runs.get(operation.model_id)
            if queue is not None and queue.head() is operation:
                queue.lost_gradients = lost or queue.lost_gradients
                queue.advance(now=self._clock())
        self._futures.settle(operation.request_id, outcome)

    def _drop(self, model_id: str, failure: Failed) -> None:
        with self._wake:
            queue = self._runs.pop(model_id, None)
        self._fail(queue.drain() if queue else [], failure)

    def _fail(self, operations: list[Operation], failure: Failed) -> None:
        for operation in operations:
            self._progress.pop(operation.request_id, None)
            self._futures.settle(operation.request_id, failure)


def _makes_run(operation: Operation) -> TypeGuard[CreateRun | LoadRun]:
    return isinstance(operation, CreateRun | LoadRun) and operation.seq_id == 0
