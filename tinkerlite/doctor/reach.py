"""Is there a server, does it know the key, and how does it greet a client?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Generator
from typing import Any

from tinkerlite.answers import read_json
from tinkerlite.config import ClientConfig
from tinkerlite.connection import PROTOCOL_VERSION, Connection
from tinkerlite.doctor.findings import Finding
from tinkerlite.errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    AuthenticationError,
    BillingError,
    NotFoundError,
    PermissionDeniedError,
)
from tinkerlite.service_client import ServiceClient

ROUND_TRIPS = 7
SLOW_SECONDS = 0.5
"""A round trip that costs more than the work of a small step."""

REFUSALS = (AuthenticationError, PermissionDeniedError, BillingError)
_KEY_ADVICE = "set TINKERLITE_API_KEY to a key of this server, or pass --api-key"


def reach(
    base_url: str | None, api_key: str | None, config: ClientConfig
) -> Generator[Finding, None, ServiceClient | None]:
    """Findings on the way to a session; returns its client, or None if there is no way.

    Raises:
        InvalidRequest, CapabilityError: `base_url` is none, or a key or a local server is missing.
    """
    try:
        connection = Connection(base_url, api_key, config)
    except REFUSALS as error:
        yield Finding(check="reachable", outcome="pass", says="a server answers")
        yield _refused(error)
        return None
    except APIConnectionError as error:
        yield Finding(
            check="reachable",
            outcome="fail",
            says=error.message,
            advice="check --base-url, and that the server runs and can be reached from here",
        )
        return None
    except APIError as error:
        yield Finding(
            check="reachable",
            outcome="fail",
            says=f"something answers, and not as this protocol does: {error.message}",
            advice="check --base-url: everything after it begins with /api/v1",
        )
        return None
    try:
        yield _round_trip(connection)
        yield _greeting(connection)
        return (yield from _session(base_url, api_key, config))
    finally:
        connection.close()


def _round_trip(connection: Connection) -> Finding:
    times: list[float] = []
    for _ in range(ROUND_TRIPS):
        started = time.monotonic()
        try:
            connection.wait(connection.transport.request("GET", "healthz"))
        except APIStatusError:
            pass  # an answer too, and as quick
        except APIConnectionError as error:
            return Finding(check="reachable", outcome="fail", says=f"the server answers at times: {error}")
        times.append(time.monotonic() - started)
    median = statistics.median(times)
    slow = median > SLOW_SECONDS
    return Finding(
        check="reachable",
        outcome="warn" if slow else "pass",
        says=f"{_where(connection)} answers; a round trip takes {1000 * median:.1f} ms "
        f"(median of {ROUND_TRIPS})",
        advice="every request pays for that: run the loop nearer to the server" if slow else "",
        measured={"base_url": _where(connection), "round_trip_seconds": median},
    )


def _where(connection: Connection) -> str:
    endpoint = connection.endpoint
    return f"local://{','.join(endpoint.local_models)}" if endpoint.local_models else endpoint.base_url


def _greeting(connection: Connection) -> Finding:
    """How it behaves at client/config."""
    try:
        request = connection.transport.request(
            "POST", "client/config", json={"sdk_version": PROTOCOL_VERSION}
        )
        settings: dict[str, Any] = read_json(connection.wait(request))
    except NotFoundError:
        return Finding(
            check="client/config",
            outcome="warn",
            says="the server has no client/config; this client goes on with defaults",
            advice="the official SDK needs it from 0.18 on",
            measured={"offered": False},
        )
    except APIError as error:
        return Finding(check="client/config", outcome="fail", says=error.message)
    config = connection.server_config
    order = "side by side" if config.parallel_fwdbwd_chunks else "one after the other"
    exchange = config.pjwt_auth_enabled
    return Finding(
        check="client/config",
        outcome="warn" if exchange else "pass",
        says=f"large batches go in chunks of at most {config.fwdbwd_max_chunk_len} datums and "
        f"{config.fwdbwd_max_chunk_bytes_count} bytes, {order}"
        + ("; the server asks clients to exchange the key for a token" if exchange else ""),
        advice="this client sends the key itself; if it is refused, use the official SDK" if exchange else "",
        measured={"offered": True, "settings": settings},
    )


def _session(
    base_url: str | None, api_key: str | None, config: ClientConfig
) -> Generator[Finding, None, ServiceClient | None]:
    try:
        service = ServiceClient(base_url=base_url, api_key=api_key, config=config)
    except REFUSALS as error:
        yield _refused(error)
        return None
    except APIError as error:
        yield Finding(
            check="key",
            outcome="fail",
            says=f"no session can be opened: {error.message}",
            advice="the server's log may say why create_session fails",
        )
        return None
    yield Finding(check="key", outcome="pass", says="the key is accepted, and a session is open")
    return service


def _refused(error: APIStatusError) -> Finding:
    return Finding(check="key", outcome="fail", says=error.message, advice=_KEY_ADVICE)
