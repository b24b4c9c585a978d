"""Many HTTP clients that look like one, so that hundreds of requests can wait side by side.

httpx's connection pool looks at all of its connections for every request, which makes n requests
at once cost n squared. Here no pool has more than a few; another is opened when they are all busy.

Knows httpx, and nothing of what is sent.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

LANE_WIDTH = 8
"""Requests at once in one pool."""


@dataclass
class _Lane:
    http: httpx.AsyncClient
    busy: int = 0


class Lanes:
    """Lends out clients that have a connection to spare. For the background loop alone."""

    def __init__(self, open_client: Callable[[], httpx.AsyncClient]) -> None:
        self._open_client = open_client
        self._lanes: list[_Lane] = []

    @asynccontextmanager
    async def lane(self) -> AsyncGenerator[httpx.AsyncClient]:
        """A client for one request. The same few are used again as long as they suffice."""
        lane = next((each for each in self._lanes if each.busy < LANE_WIDTH), None)
        if lane is None:
            lane = _Lane(self._open_client())
            self._lanes.append(lane)
        lane.busy += 1
        try:
            yield lane.http
        finally:
            lane.busy -= 1

    async def aclose(self) -> None:
        """Close all connections."""
        for lane in self._lanes:
            await lane.http.aclose()
