"""RunQueue: one training run's operations, strictly in the order of their numbers.

Requests may arrive in any order (a client posts the chunks of a batch at once), so an early
one is parked until its turn. A number that was refused, or never comes, is passed over, since
the client does not use it again.
"""

from __future__ import annotations

from tinkerlite_server.errors import BadRequest, Busy
from tinkerlite_server.operations import UNNUMBERED, LostGradients, Operation, Refusal

_MOST_REFUSED = 10_000
"""Refused numbers remembered ahead of their turn; a client that piles up more waits out its gaps."""


class RunQueue:
    """Pure data structure; the scheduler locks around it.

    Args:
        first_seq: the number to run first: 0 for a run that is still to be made.
    """

    def __init__(self, model_id: str, owner: str, base_model: str, *, first_seq: int = 0) -> None:
        self.model_id = model_id
        self.owner = owner
        self.base_model = base_model
        self.next_seq = first_seq
        self.lost_gradients: LostGradients | None = None
        """Set when gradients went missing; the next optim_step fails and starts afresh."""
        self._waiting: dict[int, Operation] = {}
        self._refused: dict[int, Refusal] = {}
        self._gap: tuple[int, float] | None = None  # the missing number, and since when it holds up others

    def number(self, operation: Operation) -> int:
        """The number that an operation runs under: its own, or the one after the last known."""
        if operation.seq_id != UNNUMBERED:
            return operation.seq_id
        return max(self.next_seq, *(seq + 1 for seq in (*self._waiting, *self._refused)), 1)

    def put(self, operation: Operation, *, now: float, limit: int) -> None:
        """Queue an operation.

        Raises:
            BadRequest: its number was passed already, or belongs to another operation.
            Busy: `limit` operations wait already, and not for this one.
        """
        seq = self.number(operation)
        if seq < self.next_seq or seq in self._waiting or seq in self._refused:
            raise BadRequest(
                f"seq_id {seq} of {self.model_id!r} was used before; the next to run is {self.next_seq}. "
                "Numbers count up by one and none is used twice, not even after a refusal."
            )
        if len(self._waiting) >= limit and seq != self.next_seq:
            raise Busy(
                f"{len(self._waiting)} operations of {self.model_id!r} are waiting; await some of them first"
            )
        self._waiting[seq] = operation
        self._look_for_gap(now)

    def refuse(self, refusal: Refusal, *, now: float) -> None:
        """Record that a number was turned down, so that nobody waits for it."""
        free = refusal.seq_id >= self.next_seq and refusal.seq_id not in self._waiting
        if free and len(self._refused) < _MOST_REFUSED:
            self._refused[refusal.seq_id] = refusal
            self._pass_refused()
            self._look_for_gap(now)

    def head(self) -> Operation | None:
        """The operation whose turn it is, if it has arrived."""
        return self._waiting.get(self.next_seq)

    def advance(self, *, now: float) -> None:
        """The head is finished."""
        del self._waiting[self.next_seq]
        self.next_seq += 1
        self._pass_refused()
        self._look_for_gap(now)

    def why_waiting(self, request_id: str) -> str | None:
        """In words, what one of the queued operations waits for; None if it is not here."""
        for seq, operation in self._waiting.items():
            if operation.request_id == request_id:
                if self._gap:
                    return (
                        f"operation {seq} of {self.model_id} waits for {self._gap[0]}, which has not arrived"
                    )
                ahead = sum(other < seq for other in self._waiting)
                return f"operations of {self.model_id} ahead of it: {ahead}" if ahead else "it is its turn"
        return None

    def give_up_gap(self, *, now: float, after_seconds: float) -> tuple[int, list[Operation]]:
        """The number that stayed missing too long, and what waited behind it; both leave the queue.

        Everything that has arrived goes, as the missing operation may be what it builds on.
        """
        if self._gap is None or now - self._gap[1] < after_seconds:
            return 0, []
        missing, last = self.next_seq, max(self._waiting)
        stranded = self.drain()
        self.next_seq = last + 1
        self.lost_gradients = LostGradients(f"operation {missing} never arrived", "unknown")
        self._pass_refused()
        self._look_for_gap(now)
        return missing, stranded

    def wait_longer(self, seconds: float) -> None:
        """The missing number is missing later by so much."""
        if self._gap is not None:
            self._gap = (self._gap[0], self._gap[1] + seconds)

    def drain(self) -> list[Operation]:
        """Take out everything that waits, in order."""
        stranded = [self._waiting[seq] for seq in sorted(self._waiting)]
        self._waiting.clear()
        self._gap = None
        return stranded

    def _pass_refused(self) -> None:
        self._refused = {seq: refusal for seq, refusal in self._refused.items() if seq >= self.next_seq}
        while self.next_seq in self._refused:
            refusal = self._refused.pop(self.next_seq)
            if refusal.loses_gradients:
                self.lost_gradients = LostGradients(
                    f"forward_backward {refusal.seq_id} was refused: {refusal.reason}"
                )
            self.next_seq += 1

    def _look_for_gap(self, now: float) -> None:
        if not self._waiting or self.next_seq in self._waiting:
            self._gap = None
        elif self._gap is None or self._gap[0] != self.next_seq:
            self._gap = (self.next_seq, now)
