"""What a client needs besides its calls: where the server is, who is asking, and how long to wait.

Knows nothing about HTTP.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from urllib.parse import urlsplit

from tinkerlite.errors import InvalidRequest

DEFAULT_BASE_URL = "http://127.0.0.1:8000"
"""Where `tinkerlite serve` listens unless told otherwise."""

LOCAL_API_KEY = "tml-local"
"""Sent to servers on this machine when no key is set; without configured keys they take any."""

LOCAL_SCHEME = "local://"


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """How a client waits, retries and bounds itself. Times are in seconds."""

    connect_timeout_seconds: float = 5.0
    """For the connection to a server to open."""
    request_timeout_seconds: float = 60.0
    """For the answer to an ordinary request."""
    poll_timeout_seconds: float = 45.0
    """For the answer to one long poll; servers hold those for 20 to 30 s."""
    startup_timeout_seconds: float = 5.0
    """For the first contact: a server that was never there is given up sooner than a lost one."""
    reconnect_timeout_seconds: float = 300.0
    """How long a server may be away, or refuse with 429 or 5xx, before that is an error."""
    first_backoff_seconds: float = 1.0
    """The wait before the first repetition; it doubles up to 30 s. A Retry-After goes before it."""
    billing_pause_seconds: float = 5.0
    """The wait between two attempts while the account cannot pay (402); the server says for how long."""
    stuck_timeout_seconds: float = 600.0
    """How long a training run or sampler may go without finishing anything it was asked, while the server
    does not say that it is at work on its queue (`queue_state` "active")."""
    active_timeout_seconds: float = 7200.0
    """The same while the server says that it is: one operation may take a slow machine that long."""
    progress_after_seconds: float = 10.0
    """When to say that we are still waiting; again each time the wait has doubled. The environment
    variable TINKERLITE_NO_PROGRESS silences it."""
    heartbeat_seconds: float = 10.0
    """How often the server hears that the session is alive."""
    max_concurrent_samples: int = 256
    """Sample requests in flight per sampler; the others queue here. The server may ask for fewer."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise InvalidRequest(f"{field.name} is {getattr(self, field.name)}; it must be above 0")


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Which server, and the key to show it."""

    base_url: str
    """http(s), without a trailing slash; for a server in this process, a name that is never looked up."""
    api_key: str
    local_models: tuple[str, ...] = ()
    """The models of a server in this process; empty for every other server."""
    is_loopback: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    """Sent with every request besides our own, before which they go."""


def environment(name: str) -> str | None:
    """The variable TINKERLITE_`name`, else TINKER_`name`; empty counts as unset."""
    return os.environ.get(f"TINKERLITE_{name}") or os.environ.get(f"TINKER_{name}") or None


def resolve_endpoint(
    base_url: str | None = None, api_key: str | None = None, headers: Mapping[str, str] | None = None
) -> Endpoint:
    """Arguments first, then the environment, then the server on this machine.

    Raises:
        InvalidRequest: a URL of another kind, `local://` without a model, no key for a server
            elsewhere, or a key or header that HTTP cannot carry.
    """
    url = (base_url or environment("BASE_URL") or DEFAULT_BASE_URL).strip().rstrip("/")
    key = (api_key or environment("API_KEY") or "").strip() or None  # files and shells add line ends
    if key is not None:
        _check_header("the API key", key)
    added = tuple((headers or {}).items())
    for name, value in added:
        _check_header(f"the value of the header {name!r}", value)
    if url.startswith(LOCAL_SCHEME.rstrip("/")):
        models = tuple(name.strip() for name in url.removeprefix(LOCAL_SCHEME).split(",") if name.strip())
        if not url.startswith(LOCAL_SCHEME) or not models:
            raise InvalidRequest(f"{url!r} names no model; write local://MODEL, a hub id or a folder")
        return Endpoint(
            base_url="http://tinkerlite.local",
            api_key=key or LOCAL_API_KEY,
            local_models=models,
            headers=added,
        )
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidRequest(f"base_url {url!r} must start with http://, https:// or local://")
    is_loopback = _is_loopback(parts.hostname)
    if key is None and not is_loopback:
        raise InvalidRequest(f"no API key for {url}; pass api_key=... or set TINKERLITE_API_KEY")
    return Endpoint(base_url=url, api_key=key or LOCAL_API_KEY, is_loopback=is_loopback, headers=added)


def _check_header(what: str, value: str) -> None:
    """Raises InvalidRequest where no HTTP header can carry it, without showing it: it may be secret."""
    place = next((place for place, c in enumerate(value) if not (c.isascii() and c.isprintable())), None)
    if place is not None:
        raise InvalidRequest(
            f"{what} has U+{ord(value[place]):04X} at character {place + 1} of {len(value)}, which no HTTP "
            "header can carry; was it copied with something around it?"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
