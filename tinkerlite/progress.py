"""What the user hears while waiting: one line after 10 s, and again each time the wait has doubled.

Counts requests by kind; knows nothing about how they are sent. Silenced by TINKERLITE_NO_PROGRESS.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(eq=False)
class Waiting:
    """One request that has no result yet, and what the server last said about its queue."""

    kind: str
    since: float = field(default_factory=time.monotonic)
    queue_state: str = "unknown"
    queue_reason: str | None = None

    @property
    def queue(self) -> str:
        """The queue state, with the server's reason for it."""
        return f"{self.queue_state} ({self.queue_reason})" if self.queue_reason else self.queue_state


class ProgressClock:
    """When a training run or a sampler last finished something."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def touch(self) -> None:
        """Something finished now."""
        self.last = time.monotonic()

    def idle_seconds(self, pending_since: float) -> float:
        """For how long neither a request that is pending since then nor any of its siblings has moved."""
        return time.monotonic() - max(self.last, pending_since)


class Gate:
    """Closed for a while after the server said that it is busy. Lives on the background loop."""

    def __init__(self) -> None:
        self._opens = 0.0

    def close_for(self, seconds: float) -> None:
        """Nobody passes for so long; a longer wait that is under way stays."""
        self._opens = max(self._opens, time.monotonic() + seconds)

    async def opened(self) -> None:
        """Wait until it is open."""
        while (wait := self._opens - time.monotonic()) > 0:
            await asyncio.sleep(wait)


class WaitingBoard:
    """All that one connection waits for. Lives on the background loop."""

    def __init__(self, after_seconds: float) -> None:
        self._after_seconds = after_seconds
        self._next_seconds = after_seconds
        self._waiting: set[Waiting] = set()
        self._ticker: asyncio.Task[None] | None = None

    @contextmanager
    def watch(self, kind: str) -> Generator[Waiting]:
        """Put a request on the board for as long as the block lasts."""
        waiting = Waiting(kind)
        self._waiting.add(waiting)
        if self._ticker is None and not os.environ.get("TINKERLITE_NO_PROGRESS"):
            self._ticker = asyncio.get_running_loop().create_task(self._tick())
        try:
            yield waiting
        finally:
            self._waiting.discard(waiting)

    async def _tick(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(self._after_seconds / 10)
                oldest = min((each.since for each in self._waiting), default=time.monotonic())
                seconds = time.monotonic() - oldest
                if seconds < self._after_seconds:
                    self._next_seconds = self._after_seconds
                elif seconds >= self._next_seconds:
                    self._next_seconds = 2 * seconds
                    self._say(seconds)
        finally:
            self._ticker = None

    def _say(self, seconds: float) -> None:
        kinds = Counter(each.kind for each in self._waiting)
        listed = ", ".join(kind if count == 1 else f"{count} x {kind}" for kind, count in kinds.items())
        # A server that holds the poll has said nothing of its queue yet.
        known = sorted({each.queue for each in self._waiting if each.queue_state != "unknown"})
        queue = f"; queue: {', '.join(known)}" if known else ""
        # Not a live display: the user may have one, and logs and notebooks want lines.
        from rich.console import Console  # seldom needed, and slow to import

        console = Console(stderr=True, highlight=False, emoji=False)
        console.print(
            f"[dim]tinkerlite: waiting for {listed}, {seconds:.0f} s so far{queue}[/dim]", soft_wrap=True
        )
