"""LoopbackTransport: HTTP/1.1 to a server on this machine, over asyncio's own streams.

Between two processes of one machine a round trip costs what its packets and wake-ups cost. Here a
request leaves in one packet, where httpx's usual transport sends its head and its body apart, and no
layer lies between h11 and the socket.

Knows h11 and httpx's interface of transports. Knows neither TLS nor proxies.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import contextmanager
from typing import Any

import h11
import httpx

_READ_BYTES = 2**16
_IDLE_SECONDS = 3.0
"""Idle connections are dropped before common servers drop them (after 5 s)."""


class LoopbackTransport(httpx.AsyncBaseTransport):
    """As many connections as there are requests at once, used again. For one server and one event loop."""

    def __init__(self) -> None:
        self._idle: list[_Exchange] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and read the head of its answer; the body is read as it is asked for.

        Raises:
            httpx.TransportError: as httpx's own transports.
        """
        timeout: dict[str, float | None] = request.extensions.get("timeout", {})
        body = await request.aread()
        exchange = self._take_idle()
        if exchange is None:
            with _named(httpx.ConnectTimeout, httpx.ConnectError):
                async with asyncio.timeout(timeout.get("connect")):
                    exchange = _Exchange(*await asyncio.open_connection(request.url.host, request.url.port))
        try:
            head = await exchange.ask(request, body, timeout.get("read"))
        except BaseException:
            exchange.close()
            raise
        return httpx.Response(
            head.status_code,
            headers=head.headers.raw_items(),
            stream=_Body(exchange, self._idle.append),
            extensions={"reason_phrase": head.reason},
        )

    def _take_idle(self) -> _Exchange | None:
        while self._idle:
            exchange = self._idle.pop()  # the latest, so that those too many grow old
            if exchange.is_fresh:
                return exchange
            exchange.close()
        return None

    async def aclose(self) -> None:
        """Close the idle connections; the others close with their answers."""
        while self._idle:
            self._idle.pop().close()


class _Exchange:
    """One connection, and what has been said on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT)
        self._read_seconds: float | None = None
        self._used = time.monotonic()

    @property
    def is_fresh(self) -> bool:
        """Whether the server has most likely not hung up."""
        return time.monotonic() - self._used < _IDLE_SECONDS and not self._reader.at_eof()

    async def ask(self, request: httpx.Request, body: bytes, read_seconds: float | None) -> h11.Response:
        self._read_seconds = read_seconds
        head = h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
        with _named(httpx.WriteTimeout, httpx.WriteError):
            parts = (self._http.send(head), body and self._http.send(h11.Data(body)))
            self._writer.write(b"".join(part for part in parts if part))
            self._http.send(h11.EndOfMessage())
            async with asyncio.timeout(read_seconds):
                await self._writer.drain()
        while True:
            event = await self.next_event()
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise httpx.RemoteProtocolError("the server hung up without an answer")

    async def next_event(self) -> Any:
        with _named(httpx.ReadTimeout, httpx.ReadError):
            while (event := self._http.next_event()) is h11.NEED_DATA:
                async with asyncio.timeout(self._read_seconds):
                    self._http.receive_data(await self._reader.read(_READ_BYTES))
        return event

    def renew(self) -> bool:
        """Get ready for the next request; False if this connection takes none."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        self._used = time.monotonic()
        return True

    def close(self) -> None:
        self._writer.close()


class _Body(httpx.AsyncByteStream):
    """The body of an answer; what remains unread costs the connection."""

    def __init__(self, exchange: _Exchange, give_back: Callable[[_Exchange], None]) -> None:
        self._exchange = exchange
        self._give_back = give_back

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while isinstance(event := await self._exchange.next_event(), h11.Data):
            yield bytes(event.data)

    async def aclose(self) -> None:
        if self._exchange.renew():
            self._give_back(self._exchange)
        else:
            self._exchange.close()


@contextmanager
def _named(timeout: type[httpx.TimeoutException], failure: type[httpx.NetworkError]) -> Any:
    """Around one part of an exchange: what goes wrong in it, under httpx's names."""
    try:
        yield
    except TimeoutError as error:
        raise timeout(str(error)) from error
    except OSError as error:
        raise failure(str(error)) from error
    except h11.RemoteProtocolError as error:
        raise httpx.RemoteProtocolError(str(error)) from error
    except h11.LocalProtocolError as error:
        raise httpx.LocalProtocolError(str(error)) from error
