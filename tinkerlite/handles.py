"""Samplers on their way to another process: what must travel, and what must differ there.

A copy shares its sampler and nothing else: it numbers its requests in a range of its own, since
the server takes two requests with one number for a repetition.
"""

from __future__ import annotations

import base64
import json
import os
import random
import threading
import weakref
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tinkerlite.config import ClientConfig, Endpoint, resolve_endpoint
from tinkerlite.connection import Connection
from tinkerlite.errors import CapabilityError, InvalidRequest
from tinkerlite.types import ClientConfigResponse

if TYPE_CHECKING:
    from tinkerlite.sampling_client import SamplerSource

RANGE = 10**9
"""How many numbers each copy has. Which range is drawn by chance, from as many: 64 bits hold them."""

_connections: weakref.WeakValueDictionary[tuple[Endpoint, ClientConfig], Connection] = (
    weakref.WeakValueDictionary()
)
_lock = threading.Lock()


def _forget() -> None:
    """In a forked child: the connections are the parent's, and the lock may have been held."""
    global _lock
    _connections.clear()
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def first_number() -> int:
    """Where the numbers of a new copy begin; those of the original begin at 0."""
    return random.SystemRandom().randint(1, RANGE) * RANGE


def write(connection: Connection, source: SamplerSource) -> str:
    """A sampler as text, without the key."""
    if connection.endpoint.local_models:
        raise CapabilityError(
            "this sampler lives in this process, with its server (local://), and cannot be used in another; "
            "run `tinkerlite serve` and name its URL"
        )
    content: dict[str, Any] = {
        "base_url": connection.endpoint.base_url,
        "headers": dict(connection.endpoint.headers),
        "config": asdict(connection.config),
        "server_config": connection.server_config.model_dump(),
        "source": asdict(source),
    }
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode("ascii")


def read(handle: str, api_key: str | None) -> tuple[Connection, dict[str, Any]]:
    """The server and the sampler that a handle stands for. Copies in one process share a connection."""
    try:
        content = json.loads(base64.urlsafe_b64decode(handle))
        config = ClientConfig(**content["config"])
        server_config = ClientConfigResponse.model_validate(content["server_config"])
        base_url, headers, source = content["base_url"], content["headers"], dict(content["source"])
    except (ValueError, TypeError, KeyError, ValidationError) as error:
        raise InvalidRequest(f"this is not what get_sampler_handle() returned: {error!r}") from error
    endpoint = replace(resolve_endpoint(base_url, api_key), headers=tuple(headers.items()))
    with _lock:
        connection = _connections.get((endpoint, config))
        if connection is None or connection.is_closed:
            connection = Connection.resume(endpoint, config, server_config)
            _connections[endpoint, config] = connection
    return connection, source
