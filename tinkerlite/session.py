"""Session: the server's name for one user's work, kept alive by heartbeats until it is finished.

Numbers its training runs and samplers. Knows nothing about what they do.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
import weakref
from typing import TYPE_CHECKING, Any, Literal

from tinkerlite.config import environment
from tinkerlite.connection import PROTOCOL_VERSION, Connection
from tinkerlite.errors import APIError, NotFoundError, ResultGoneError
from tinkerlite.types import CreateSessionResponse

if TYPE_CHECKING:
    from tinkerlite.transport import Transport

logger = logging.getLogger("tinkerlite")

FinishReason = Literal["success", "errored", "interrupted"]

SILENCE_SECONDS = 120.0
"""How long heartbeats may fail before the log says so; servers end sessions after about as long."""


class Session:
    """A session on one server. Making it blocks until the server has answered."""

    def __init__(
        self,
        connection: Connection,
        user_metadata: dict[str, str] | None = None,
        project_id: str | None = None,
        display_name: str | None = None,
    ) -> None:
        self.connection = connection
        body: dict[str, Any] = {
            "type": "create_session",
            "tags": tags(),
            "user_metadata": user_metadata or {},
            "sdk_version": PROTOCOL_VERSION,
            **({"project_id": project_id} if project_id else {}),
            **({"display_name": display_name} if display_name else {}),
        }
        created = connection.wait(connection.ask(CreateSessionResponse, "POST", "create_session", json=body))
        for level, message in (
            (logging.INFO, created.info_message),
            (logging.WARNING, created.warning_message),
            (logging.ERROR, created.error_message),
        ):
            if message:
                logger.log(level, "the server says: %s", message)
        self.id = created.session_id
        # One counter for runs and one for samplers: the server tells repeated requests by them.
        self._run_numbers = itertools.count()
        self._sampler_numbers = itertools.count()
        heart = _Heart(connection.transport, self.id, connection.config.heartbeat_seconds)
        connection.start(heart.beat(), "heartbeats")
        # The heart does not know the session, so a session that nobody holds any more stops beating.
        self._stop = weakref.finalize(self, connection.loop.close_soon, heart.stop)

    def next_run_number(self) -> int:
        """The `model_seq_id` of the next training run."""
        return next(self._run_numbers)

    def next_sampler_number(self) -> int:
        """The `sampling_session_seq_id` of the next sampler."""
        return next(self._sampler_numbers)

    def finish(self, reason: FinishReason, detail: str | None) -> None:
        """Tell the server that this session is over, once; later calls do nothing."""
        if self._stop.alive:
            self._stop()
            self.connection.wait(self._finish(reason, detail))

    async def _finish(self, reason: FinishReason, detail: str | None) -> None:
        try:
            await self.connection.transport.request(
                "POST",
                f"sessions/{self.id}/finish",
                json={"reason": {"type": reason}, "detail": detail},
                timeout_seconds=self.connection.config.heartbeat_seconds,
            )
        except NotFoundError:
            pass  # older servers let sessions lapse instead
        except APIError as error:
            logger.warning("session %s: the server was not told that it is over: %s", self.id, error)


def tags() -> list[str]:
    """What TINKERLITE_TAGS, or TINKER_TAGS, names with commas between."""
    named = (tag.strip() for tag in (environment("TAGS") or "").split(","))
    return list(dict.fromkeys(tag for tag in named if tag))


class _Heart:
    """Beats on the background loop until stopped, or until the server says that the session is over."""

    def __init__(self, transport: Transport, session_id: str, seconds: float) -> None:
        self._transport = transport
        self._session_id = session_id
        self._seconds = seconds
        self._task: asyncio.Task[None] | None = None

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def beat(self) -> None:
        self._task = asyncio.current_task()
        heard = time.monotonic()
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await self._transport.request(
                    "POST",
                    "session_heartbeat",
                    json={"session_id": self._session_id, "type": "session_heartbeat"},
                    timeout_seconds=self._seconds,
                )
                heard = time.monotonic()
            except ResultGoneError:
                logger.warning(
                    "session %s: the server has ended it; make a new ServiceClient", self._session_id
                )
                return
            except APIError as error:
                silent = time.monotonic() - heard
                if silent > SILENCE_SECONDS:
                    logger.warning("session %s: no heartbeat for %.0f s: %s", self._session_id, silent, error)
                    heard = time.monotonic()
