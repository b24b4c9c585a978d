"""SampleQueue: sample requests on their way to the engine, callers in turn.

The engine takes them first come, first served, so it is given only a window of them; behind
it, each caller has a line of their own, and who has the fewest samples in the engine is next, in
rotation among equals. A caller with a thousand requests delays another's first by one.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque

from tinkerlite_server.errors import Busy
from tinkerlite_server.operations import Sample


class SampleQueue:
    """Pure data structure; the scheduler locks around it. Sizes count samples, not requests.

    Args:
        window: samples in the engine at once, per base model. A larger request goes alone.
        limit: samples waiting or running over all callers. Beyond it only those are turned away who have an
            equal share of it already, so that nobody fills the queue for others.
    """

    def __init__(self, *, window: int, limit: int) -> None:
        self._window = window
        self._limit = limit
        self._lines: dict[tuple[str, str], OrderedDict[str, Sample]] = {}
        self._turns: dict[str, deque[str]] = {}
        self._running: dict[str, Sample] = {}
        self._in_engine: Counter[str] = Counter()
        self._held: Counter[tuple[str, str]] = Counter()
        """What of that is whose."""
        self._adapters: Counter[str | None] = Counter()
        self._size = 0
        self._sizes: Counter[str] = Counter()
        """By caller."""

    @property
    def waiting(self) -> int:
        """Requests that have not been handed to the engine."""
        return sum(map(len, self._lines.values()))

    def put(self, sample: Sample) -> None:
        """Queue a request.

        Raises:
            Busy: that would make more than `limit` samples, and this caller has their share.
        """
        size, owner = sample.work.num_samples, sample.owner
        share = self._limit // len({*self._sizes, owner})
        if self._size and self._size + size > self._limit and self._sizes[owner] + size > share:
            raise Busy(
                f"{self._size} samples are queued, the limit is {self._limit}; send this one again later"
            )
        base_model = sample.work.base_model
        line = self._lines.get((base_model, sample.owner))
        if line is None:
            line = self._lines[base_model, sample.owner] = OrderedDict()
            self._turns.setdefault(base_model, deque()).append(sample.owner)
        line[sample.request_id] = sample
        self._size += size
        self._sizes[owner] += size
        self._adapters[sample.work.adapter_id] += 1

    def admit(self) -> list[Sample]:
        """The requests that the engine gets now."""
        admitted: list[Sample] = []
        for base_model, turns in list(self._turns.items()):
            while turns and self._in_engine[base_model] < self._window:
                sample = self._next(base_model, turns)
                self._running[sample.request_id] = sample
                self._in_engine[base_model] += sample.work.num_samples
                self._held[base_model, sample.owner] += sample.work.num_samples
                admitted.append(sample)
        return admitted

    def _next(self, base_model: str, turns: deque[str]) -> Sample:
        owner = min(turns, key=lambda owner: self._held[base_model, owner])
        turns.remove(owner)
        line = self._lines[base_model, owner]
        _, sample = line.popitem(last=False)
        if line:
            turns.append(owner)
        else:
            self._close_line(base_model, owner)
        return sample

    def _close_line(self, base_model: str, owner: str) -> None:
        del self._lines[base_model, owner]
        if not self._turns[base_model]:
            del self._turns[base_model]

    def finish(self, request_id: str) -> Sample | None:
        """The engine is done with it, one way or another."""
        sample = self._running.pop(request_id, None)
        if sample is not None:
            base_model, size = sample.work.base_model, sample.work.num_samples
            self._in_engine[base_model] -= size
            self._held[base_model, sample.owner] -= size
            if not self._held[base_model, sample.owner]:
                del self._held[base_model, sample.owner]
            self._leave(sample)
        return sample

    def withdraw(self, request_id: str) -> bool:
        """Take out a request that still waits; False if there is none."""
        for (base_model, owner), line in self._lines.items():
            sample = line.pop(request_id, None)
            if sample is not None:
                self._leave(sample)
                if not line:
                    self._turns[base_model].remove(owner)
                    self._close_line(base_model, owner)
                return True
        return False

    def why_waiting(self, request_id: str) -> str | None:
        """In words, where a request is; None if it is not here."""
        if request_id in self._running:
            return "the sampler is at it"
        for line in self._lines.values():
            if request_id in line:
                ahead = list(line).index(request_id)
                return f"{ahead} sample requests of this key and {self._size} samples in all are queued"
        return None

    def of_session(self, session_id: str) -> list[str]:
        """Requests of a session, waiting or running."""
        return [each.request_id for each in self._all() if each.session_id == session_id]

    def running(self) -> list[str]:
        """Requests that the engine has."""
        return list(self._running)

    def uses(self, adapter_id: str) -> bool:
        """Whether anything queued or running samples from this adapter."""
        return self._adapters[adapter_id] > 0

    def folders(self) -> set[str]:
        """Checkpoint folders that anything queued or running samples from."""
        return {each.folder for each in self._all() if each.folder is not None}

    def _all(self) -> list[Sample]:
        waiting = [sample for line in self._lines.values() for sample in line.values()]
        return [*waiting, *self._running.values()]

    def _leave(self, sample: Sample) -> None:
        self._size -= sample.work.num_samples
        self._sizes[sample.owner] -= sample.work.num_samples
        if not self._sizes[sample.owner]:
            del self._sizes[sample.owner]
        self._adapters[sample.work.adapter_id] -= 1
        if not self._adapters[sample.work.adapter_id]:
            del self._adapters[sample.work.adapter_id]
