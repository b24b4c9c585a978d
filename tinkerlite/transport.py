"""One HTTP exchange: send, receive, and turn whatever went wrong on the line into an error of ours.

Knows httpx, which takes a while to import: so this is imported when a server is first reached.
Does not retry, and knows nothing of futures or sessions.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Generator, Mapping, Set
from contextlib import AsyncExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

from tinkerlite.answers import status_error
from tinkerlite.config import ClientConfig, Endpoint
from tinkerlite.errors import (
    APIConnectionError,
    APIResponseValidationError,
    APITimeoutError,
    ClientClosedError,
)
from tinkerlite.lanes import Lanes
from tinkerlite.local import local_servers
from tinkerlite.loop import BackgroundLoop

CLOSE_PATIENCE_SECONDS = 2.0
"""How long what is under way may take to end."""


class Transport:
    """The connections to one endpoint. Open it, and use it, on the background loop."""

    def __init__(
        self,
        endpoint: Endpoint,
        config: ClientConfig,
        loop: BackgroundLoop,
        lanes: Lanes,
        resources: AsyncExitStack,
    ) -> None:
        self._endpoint = endpoint
        self._config = config
        self._loop = loop
        self._lanes = lanes
        self._resources = resources
        self._finalizer = weakref.finalize(self, loop.close_soon, resources.aclose)

    @classmethod
    async def open(
        cls, endpoint: Endpoint, config: ClientConfig, loop: BackgroundLoop, users: Set[asyncio.Task[Any]]
    ) -> Transport:
        """Connect to nothing yet, but start the server if it is to run in this process.

        `users` are the tasks that send through it: they end before it does.
        """
        resources = AsyncExitStack()
        options: dict[str, Any]
        is_secure = endpoint.base_url.startswith("https")
        if endpoint.local_models:
            app = await resources.enter_async_context(local_servers.lease(endpoint.local_models))
            options = {"transport": httpx.ASGITransport(app, raise_app_exceptions=False)}
        else:
            # No proxy stands between two processes on one machine, whatever the environment says.
            # Certificates take a while to load: once.
            options = {
                "trust_env": not endpoint.is_loopback,
                "verify": httpx.create_ssl_context() if is_secure else False,
                # Idle connections are dropped before common servers drop them (after 5 s).
                "limits": httpx.Limits(max_connections=None, keepalive_expiry=3.0),
            }
        headers = {
            "X-API-Key": endpoint.api_key,
            "User-Agent": f"tinkerlite/{version('tinkerlite')}",
            "Accept": "application/json",
            **dict(endpoint.headers),
        }
        lanes = Lanes(lambda: httpx.AsyncClient(base_url=endpoint.base_url, headers=headers, **options))
        resources.push_async_callback(lanes.aclose)
        resources.push_async_callback(_end, users)
        return cls(endpoint, config, loop, lanes, resources)

    def close(self) -> None:
        """End what is under way, close the connections, and stop the server if it was started here.

        Collecting the transport, or exiting, does the same.
        """
        self._loop.call(self.aclose())

    async def aclose(self) -> None:
        """`close`, for those on the background loop."""
        if self._finalizer.detach() is not None:
            await self._resources.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str | int] | None = None,
        timeout_seconds: float | None = None,
        may_redirect: bool = False,
    ) -> httpx.Response:
        """One request to `/api/v1/{path}`; the answer, if its status says success.

        Redirects are not followed: they are answers where `may_redirect`, and errors elsewhere.

        Raises:
            APIConnectionError, APITimeoutError: no answer.
            APIStatusError: any other status; the class is that of `tinkerlite.errors`.
        """
        self._check_open(f"{method} {path}")
        url = f"{self._endpoint.base_url}/api/v1/{path}"
        timeout = self._timeout(timeout_seconds)
        with _errors_of(method, url, timeout):
            async with self._lanes.lane() as http:
                response = await http.request(
                    method,
                    url,
                    json=json,
                    content=content,
                    headers=headers,
                    params=params,
                    timeout=timeout,
                )
        if not (response.is_success or (may_redirect and response.is_redirect)):
            raise status_error(response, method, url)
        return response

    async def fetch(self, url: str, target: Path) -> None:
        """Write what a URL leads to into a file.

        The API key goes to its own server only; elsewhere the URL is all the permission there is.

        Raises:
            As `request`, and APIResponseValidationError where it is no URL. Messages leave out its
            query, which may be a signature.
        """
        shown = url.partition("?")[0]
        self._check_open(f"GET {shown}")
        is_own = _origin(url) == _origin(self._endpoint.base_url)
        timeout = self._timeout(None)
        with _errors_of("GET", shown, timeout):
            async with AsyncExitStack() as stack:
                if is_own:
                    http = await stack.enter_async_context(self._lanes.lane())
                else:
                    http = await stack.enter_async_context(httpx.AsyncClient(follow_redirects=True))
                response = await stack.enter_async_context(http.stream("GET", url, timeout=timeout))
                if not response.is_success:
                    await response.aread()
                    raise status_error(response, "GET", shown)
                with target.open("wb") as file:
                    async for block in response.aiter_bytes():
                        file.write(block)

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return not self._finalizer.alive

    def _check_open(self, what: str) -> None:
        if self.is_closed:
            raise ClientClosedError(f"{what}: this client is closed; make a new one")

    def _timeout(self, seconds: float | None) -> httpx.Timeout:
        return httpx.Timeout(
            seconds or self._config.request_timeout_seconds, connect=self._config.connect_timeout_seconds
        )


@contextmanager
def _errors_of(method: str, url: str, timeout: httpx.Timeout) -> Generator[None]:
    """httpx's errors as ours."""
    try:
        yield
    except httpx.TimeoutException as error:
        seconds = timeout.connect if isinstance(error, httpx.ConnectTimeout) else timeout.read
        message = f"{method} {url}: no answer within {seconds:g} s ({type(error).__name__})"
        raise APITimeoutError(httpx.Request(method, url), message) from error
    except (httpx.TransportError, httpx.DecodingError) as error:
        reason = str(error) or type(error).__name__
        raise APIConnectionError(httpx.Request(method, url), f"{method} {url}: {reason}") from error


def _origin(url: str) -> tuple[str, str, int | None]:
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        parts = httpx.URL()
    if parts.scheme not in ("http", "https"):
        shown = url.partition("?")[0]
        raise APIResponseValidationError(message=f"{shown!r} is no URL of a file, though the server says so")
    return parts.scheme, parts.host, parts.port


async def _end(tasks: Set[asyncio.Task[Any]]) -> None:
    ending = list(tasks)
    for task in ending:
        task.cancel()
    if ending:
        await asyncio.wait(ending, timeout=CLOSE_PATIENCE_SECONDS)
