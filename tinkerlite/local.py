"""The reference server inside this process, for `base_url="local://MODEL"`.

Finds the server at run time through the entry point group `tinkerlite.local`, so that the client
never imports it. Knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tinkerlite.errors import CapabilityError

ENTRY_POINT_GROUP = "tinkerlite.local"


@dataclass
class _Running:
    server: Any
    users: int = 0


class LocalServers:
    """The servers of this process: one for each list of models, shared while anyone uses it."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, ...], _Running] = {}
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def lease(self, models: tuple[str, ...]) -> AsyncGenerator[Any]:
        """The ASGI app that serves these models; its last user stops it.

        Raises:
            CapabilityError: no server is installed, or it does not take these models.
        """
        async with self._lock:
            running = self._running.get(models)
            if running is None:
                server = await asyncio.to_thread(_build, models)
                await server.startup()
                running = self._running[models] = _Running(server)
            running.users += 1
        try:
            yield running.server.app
        finally:
            async with self._lock:
                running.users -= 1
                if running.users == 0:
                    del self._running[models]
                    await running.server.shutdown()


def _build(models: tuple[str, ...]) -> Any:
    from importlib.metadata import entry_points

    found = list(entry_points(group=ENTRY_POINT_GROUP))
    if not found:
        raise CapabilityError(
            "local:// runs the reference server in this process, and none is installed; "
            "install tinkerlite-server, from a checkout: pip install -e server"
        )
    try:
        return found[0].load()(models)
    except Exception as error:  # a distribution's own, whose errors we cannot know
        raise CapabilityError(f"no server starts for local://{','.join(models)}: {error}") from error


local_servers = LocalServers()

if hasattr(os, "register_at_fork"):  # a forked child has the objects, but not their threads
    os.register_at_fork(after_in_child=lambda: LocalServers.__init__(local_servers))
