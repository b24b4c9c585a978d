"""Futures: accepted requests, and the results that callers come back for.

A request is pending, then settled (done or failed), and at last gone: results are kept for
minutes after they were first fetched, since a dropped connection makes a client ask again.
Waiters are woken; nothing here polls. Any thread may settle, any event loop may wait.

Knows neither HTTP nor what the results mean.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

from tinkerlite_server.completions import Completion, CompletionLog
from tinkerlite_server.errors import BadRequest, Gone, UnknownName

Category = Literal["user", "server", "unknown"]
Content = Literal["json", "sample", "forward_backward"]

_REMEMBERED_GONE = 100_000


@dataclass(frozen=True)
class Done:
    """A result: JSON, or the protobuf message that `content` names."""

    body: bytes
    content: Content = "json"


@dataclass(frozen=True)
class Failed:
    """Why there is no result, and whether the caller ("user") can mend it."""

    message: str
    category: Category


Outcome = Done | Failed


@dataclass(frozen=True)
class Times:
    """Where the time of a settled request went, in seconds."""

    queued: float
    """From its acceptance until the engine's thread took it up."""
    engine: float
    """From then until its result was there; work that the engine did in between for others included."""


@dataclass(frozen=True)
class Ticket:
    """The receipt of `FutureTable.open`."""

    request_id: str
    is_new: bool
    """False for a request that was sent again: it is under way or done already."""


_Waiter = tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]


@dataclass(eq=False)
class _Entry:
    owner: str
    key: Hashable | None
    group: Hashable | None
    opened_at: float
    outcome: Outcome | None = None
    begun_at: float | None = None
    settled_at: float = 0.0
    first_fetched_at: float | None = None
    waiters: list[_Waiter] = field(default_factory=lambda: [])
    progress: list[Any] = field(default_factory=lambda: [])
    """What was reported, and not yet followed."""
    followers: list[_Waiter] = field(default_factory=lambda: [])

    @property
    def size_bytes(self) -> int:
        if self.outcome is None:
            return 0
        return len(self.outcome.body) if isinstance(self.outcome, Done) else len(self.outcome.message)


@dataclass(frozen=True)
class _Gone:
    owner: str
    group: Hashable | None
    why: str


class FutureTable:
    """Every request this process accepted, until its result is gone.

    Args:
        result_seconds: a result stays this long after it was first fetched.
        unfetched_seconds: a result that nobody fetches stays this long.
        max_result_bytes: results kept at once; the oldest go first, fetched ones before others.
        clock: seconds, rising.
    """

    def __init__(
        self,
        *,
        result_seconds: float,
        unfetched_seconds: float,
        max_result_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._result_seconds = result_seconds
        self._unfetched_seconds = unfetched_seconds
        self._max_result_bytes = max_result_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._by_key: dict[Hashable, tuple[str, bytes]] = {}
        # Settled entries in the order in which they may go.
        self._unfetched: OrderedDict[str, _Entry] = OrderedDict()
        self._fetched: OrderedDict[str, _Entry] = OrderedDict()
        self._gone: OrderedDict[str, _Gone] = OrderedDict()
        self._completions = CompletionLog()
        self._group_waiters: dict[Hashable, list[_Waiter]] = {}
        self._bytes = 0
        self._closing = False

    # ---- submitting ----

    def open(
        self,
        owner: str,
        key: Hashable | None = None,
        fingerprint: bytes = b"",
        group: Hashable | None = None,
    ) -> Ticket:
        """A new pending request, or the one that this request repeats.

        Args:
            key: names the request for retries, such as (model id, seq_id); None: it has no repeats.
            fingerprint: digest of its content.
            group: whose members can be waited for together.

        Raises:
            BadRequest: the key was used before, with other content.
        """
        with self._lock:
            if key is not None and key in self._by_key:
                request_id, known = self._by_key[key]
                if known != fingerprint:
                    raise BadRequest(
                        f"{key!r} was sent before with other content (request {request_id}). "
                        "A number may be sent again only to repeat the same request; count on from the last."
                    )
                return Ticket(request_id, is_new=False)
            request_id = f"req-{secrets.token_hex(16)}"
            self._entries[request_id] = _Entry(owner, key, group, self._clock())
            if key is not None:
                self._by_key[key] = (request_id, fingerprint)
            return Ticket(request_id, is_new=True)

    def discard(self, request_id: str) -> None:
        """Forget a request that was opened but not accepted."""
        with self._lock:
            self._remove(request_id)

    # ---- settling ----

    def begin(self, request_ids: Iterable[str]) -> None:
        """The engine takes these up now; those that it had before are left as they are."""
        with self._lock:
            for request_id in request_ids:
                entry = self._entries.get(request_id)
                if entry is not None and entry.begun_at is None:
                    entry.begun_at = self._clock()

    def settle(self, request_id: str, outcome: Outcome) -> None:
        """Record the result and wake whoever waits for it. The first outcome stands."""
        with self._lock:
            entry = self._entries.get(request_id)
            if entry is None or entry.outcome is not None:
                return
            entry.outcome = outcome
            entry.settled_at = self._clock()
            self._unfetched[request_id] = entry
            self._bytes += entry.size_bytes
            self._evict_over_budget(keep=request_id)
            waiters = [*entry.waiters, *entry.followers]
            entry.waiters, entry.followers = [], []
            if entry.group is not None:
                failed = isinstance(outcome, Failed)
                self._completions.add(entry.group, request_id, failed=failed, size_bytes=entry.size_bytes)
                waiters += self._group_waiters.pop(entry.group, [])
        _wake(waiters)

    def report(self, request_id: str, progress: Sequence[Any]) -> None:
        """Hand what a pending request has made so far to the one who follows it."""
        with self._lock:
            entry = self._entries.get(request_id)
            if entry is None or entry.outcome is not None:
                return
            entry.progress.extend(progress)
            followers, entry.followers = entry.followers, []
        _wake(followers)

    # ---- fetching ----

    async def wait(self, request_id: str, owner: str, seconds: float | None) -> Outcome | None:
        """The outcome, as soon as there is one; None if there is none after `seconds` (None: for ever).

        None also when the server stops.

        Raises:
            UnknownName: no such request, or not this owner's.
            Gone: it was kept long enough.
        """
        with self._lock:
            entry = self._entry(request_id, owner)
            if entry.outcome is not None:
                return self._fetch(request_id, entry)
            if self._closing:
                return None
            waiter = _new_waiter(entry.waiters)
        await _sleep(waiter, seconds)
        with self._lock:
            if waiter in entry.waiters:
                entry.waiters.remove(waiter)
            return None if entry.outcome is None else self._fetch(request_id, entry)

    async def wait_for_any(self, group: Hashable, cursor: int, seconds: float) -> list[Completion]:
        """What was settled in a group after a cursor, as soon as there is any; none after `seconds`.

        Raises:
            Gone: the cursor is of an earlier process.
        """
        with self._lock:
            found = self._completions.after(group, cursor)
            if found or self._closing:
                return found
            waiter = _new_waiter(self._group_waiters.setdefault(group, []))
        await _sleep(waiter, seconds)
        with self._lock:
            waiters = self._group_waiters.get(group, [])
            if waiter in waiters:
                waiters.remove(waiter)
            if not waiters:
                self._group_waiters.pop(group, None)
            return self._completions.after(group, cursor)

    def release(self, group: Hashable, request_ids: Collection[str]) -> None:
        """The caller has these results of a group, and will not ask for them again."""
        with self._lock:
            for request_id in request_ids:
                entry = self._entries.get(request_id)
                if entry is not None and entry.group == group and entry.outcome is not None:
                    self._remove(request_id, "it was fetched, and released")

    async def follow(self, request_id: str, owner: str) -> AsyncIterator[list[Any]]:
        """What is reported of a request, as it comes; ends when there is an outcome, or the server stops.

        For one follower: nothing is handed out twice.

        Raises:
            UnknownName: no such request, or not this owner's.
            Gone: its result was kept long enough.
        """
        while True:
            with self._lock:
                entry = self._entry(request_id, owner)
                progress, entry.progress = entry.progress, []
                if not progress:
                    if entry.outcome is not None or self._closing:
                        return
                    waiter = _new_waiter(entry.followers)
                else:
                    waiter = None
            if waiter is None:
                yield progress
            else:
                await _sleep(waiter, None)

    def _entry(self, request_id: str, owner: str) -> _Entry:
        entry = self._entries.get(request_id)
        if entry is not None and entry.owner == owner:
            return entry
        gone = self._gone.get(request_id)
        if gone is not None and gone.owner == owner:
            raise Gone(f"the result of request {request_id} is gone: {gone.why}")
        raise UnknownName(f"there is no request {request_id!r} for this API key; was the server restarted?")

    def _fetch(self, request_id: str, entry: _Entry) -> Outcome | None:
        if entry.first_fetched_at is None and self._unfetched.pop(request_id, None) is not None:
            entry.first_fetched_at = self._clock()
            self._fetched[request_id] = entry
            if entry.group is not None:
                self._completions.drop(entry.group, request_id)
        return entry.outcome

    def times(self, request_id: str) -> Times | None:
        """Where the time of a settled request went; None where the engine had no part in it."""
        with self._lock:
            entry = self._entries.get(request_id)
            if entry is None or entry.outcome is None or entry.begun_at is None:
                return None
            return Times(entry.begun_at - entry.opened_at, entry.settled_at - entry.begun_at)

    def owns(self, request_id: str, owner: str) -> bool:
        """Whether this is a live request of this owner."""
        with self._lock:
            entry = self._entries.get(request_id)
            return entry is not None and entry.owner == owner

    def close(self) -> None:
        """Send every waiter away empty-handed, now and from now on: the server is stopping."""
        with self._lock:
            self._closing = True
            entries = list(self._entries.values())
            waiters = [waiter for entry in entries for waiter in (*entry.waiters, *entry.followers)]
            waiters += [waiter for group in self._group_waiters.values() for waiter in group]
        _wake(waiters)

    # ---- forgetting ----

    def sweep(self) -> None:
        """Let go of results that were kept long enough."""
        now = self._clock()
        with self._lock:
            for request_id, entry in list(self._fetched.items()):
                if entry.first_fetched_at is None or now - entry.first_fetched_at < self._result_seconds:
                    break
                self._remove(request_id, f"it was first fetched more than {self._result_seconds:.0f} s ago")
            for request_id, entry in list(self._unfetched.items()):
                if now - entry.settled_at < self._unfetched_seconds:
                    break
                self._remove(request_id, f"nobody fetched it for {self._unfetched_seconds:.0f} s")

    def _evict_over_budget(self, keep: str) -> None:
        for results in (self._fetched, self._unfetched):
            while self._bytes > self._max_result_bytes and results:
                oldest = next(iter(results))
                if oldest == keep:
                    return
                self._remove(
                    oldest, f"results of more than {self._max_result_bytes:,} bytes were waiting in all"
                )

    def _remove(self, request_id: str, why: str | None = None) -> None:
        """Forget a request; `why` its result is gone is remembered, unless it never had one."""
        entry = self._entries.pop(request_id, None)
        if entry is None:
            return
        self._bytes -= entry.size_bytes
        self._fetched.pop(request_id, None)
        self._unfetched.pop(request_id, None)
        if entry.key is not None:
            self._by_key.pop(entry.key, None)
        if why is not None:
            self._gone[request_id] = _Gone(entry.owner, entry.group, why)
            while len(self._gone) > _REMEMBERED_GONE:
                forgotten, gone = self._gone.popitem(last=False)
                if gone.group is not None:
                    self._completions.drop(gone.group, forgotten)


def fingerprint(*parts: Any) -> bytes:
    """A digest by which a request is recognised when it is sent again."""
    digest = blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode("utf-8", "backslashreplace")
        digest.update(len(data).to_bytes(8))
        digest.update(data)
    return digest.digest()


def _new_waiter(waiters: list[_Waiter]) -> _Waiter:
    loop = asyncio.get_running_loop()
    waiter = loop, loop.create_future()
    waiters.append(waiter)
    return waiter


async def _sleep(waiter: _Waiter, seconds: float | None) -> None:
    """Until it is woken, or that long; None is for ever."""
    with suppress(TimeoutError):
        await asyncio.wait_for(waiter[1], seconds)


def _wake(waiters: list[_Waiter]) -> None:
    for loop, waiter in waiters:
        # A loop that has closed has nobody left to tell.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_finish, waiter)


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
