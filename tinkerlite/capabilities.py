"""Capabilities: what a server announces of its models, so that what it lacks is said before it is asked.

Announcing is this project's addition to the protocol: of other servers nothing is known, and
nothing is assumed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tinkerlite.answers import read_model
from tinkerlite.errors import APIError
from tinkerlite.types import GetServerCapabilitiesResponse, SupportedModel

if TYPE_CHECKING:
    from tinkerlite.transport import Transport


class Capabilities:
    """Of one server; asked for once, when something first depends on them."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._lock = asyncio.Lock()
        self._models: dict[str | None, SupportedModel] | None = None

    async def of(self, base_model: str) -> SupportedModel:
        """What is announced of a model: every field None where the server does not say."""
        async with self._lock:
            if self._models is None:
                self._models = await self._ask()
        return self._models.get(base_model, SupportedModel())

    async def _ask(self) -> dict[str | None, SupportedModel]:
        try:
            # Once: this saves a round trip at best, and a server that cannot say may still do what is asked.
            response = await self._transport.request("GET", "get_server_capabilities")
            offered = read_model(response, GetServerCapabilitiesResponse)
        except APIError:
            return {}
        return {model.model_name: model for model in offered.supported_models}
