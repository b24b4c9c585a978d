"""Connection: one server as the clients see it: ask, hand in work, wait for it.

Everything asynchronous happens on the background loop. Knows no session, run or sampler.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from tinkerlite.answers import read_model
from tinkerlite.capabilities import Capabilities
from tinkerlite.config import ClientConfig, Endpoint, resolve_endpoint
from tinkerlite.errors import APIConnectionError, NotFoundError
from tinkerlite.future import APIFuture
from tinkerlite.loop import background_loop
from tinkerlite.polling import ResultType, await_result
from tinkerlite.progress import ProgressClock, WaitingBoard
from tinkerlite.retry import UnpaidBill, resend
from tinkerlite.types import ClientConfigResponse, UntypedAPIFuture

if TYPE_CHECKING:
    import httpx

    from tinkerlite.transport import Transport

T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=BaseModel)

PROTOCOL_VERSION = "0.38.0"
"""Sent as `sdk_version`, by which servers tell the protocol's generations apart: the one we speak."""


class Connection:
    """A server, reached. `Connection(...)` blocks until the server has answered.

    Raises:
        InvalidRequest: `base_url` is not one, or a key is missing.
        APIConnectionError: nothing answers there.
        AuthenticationError: the server does not know the key.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        config: ClientConfig | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._open(resolve_endpoint(base_url, api_key, headers), config or ClientConfig(), None)

    @classmethod
    def resume(
        cls, endpoint: Endpoint, config: ClientConfig, server_config: ClientConfigResponse
    ) -> Connection:
        """To a server that has said already what it asks of its clients; sends nothing yet."""
        connection = cls.__new__(cls)
        connection._open(endpoint, config, server_config)
        return connection

    def _open(
        self, endpoint: Endpoint, config: ClientConfig, server_config: ClientConfigResponse | None
    ) -> None:
        self.config = config
        self.endpoint = endpoint
        self.loop = background_loop()
        self.speaks_protobuf: bool | None = None
        """Whether the server has taken a protobuf request; None before the first."""
        self._board = WaitingBoard(self.config.progress_after_seconds)
        self._tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self.transport, self.server_config = self.loop.call(
            _open(self.endpoint, self.config, self._tasks, server_config)
        )
        self._bill = UnpaidBill(
            self.config.billing_pause_seconds, self.server_config.billing_exception_max_pause_duration_sec
        )
        self.capabilities = Capabilities(self.transport)

    def start(
        self,
        work: Coroutine[Any, Any, T],
        label: str,
        hear: Callable[[BaseException], None] | None = None,
    ) -> APIFuture[T]:
        """Begin work on the loop; what one thread starts begins in that order.

        `hear`, if given, gets the error when somebody else does.
        """
        future = self.loop.submit(work, self._tasks)
        future.hear = hear
        return APIFuture(future, label)

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work on the loop, and block until it is done."""
        return self.loop.call(work, self._tasks)

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self.transport.is_closed

    def close(self) -> None:
        """Drop the connections; whoever still waits gets a ClientClosedError."""
        self.transport.close()

    async def send(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str | int] | None = None,
        may_redirect: bool = False,
        busy_is_final: bool = False,
    ) -> httpx.Response:
        """One exchange, repeated while the server is away or busy; see `retry.py`."""
        return await self._persist(
            lambda: self.transport.request(
                method,
                path,
                json=json,
                content=content,
                headers=headers,
                params=params,
                may_redirect=may_redirect,
            ),
            busy_is_final=busy_is_final,
        )

    async def fetch(self, url: str, target: Path) -> None:
        """Write what a URL leads to into a file, from the start again while that is broken off."""
        await self._persist(lambda: self.transport.fetch(url, target))

    async def delete(self, path: str) -> None:
        """Delete what is there. Where a repetition finds nothing, the answer that was lost said "done"."""
        attempts = 0

        async def exchange() -> None:
            nonlocal attempts
            attempts += 1
            try:
                await self.transport.request("DELETE", path)
            except NotFoundError:
                if attempts == 1:
                    raise

        await self._persist(exchange)

    async def _persist(self, exchange: Callable[[], Awaitable[T]], *, busy_is_final: bool = False) -> T:
        # The bill outside: a server that wants money is not away.
        return await self._bill.wait_out(
            lambda: resend(
                exchange,
                busy_is_final=busy_is_final,
                first_seconds=self.config.first_backoff_seconds,
                budget_seconds=self.config.reconnect_timeout_seconds,
                attempt_seconds=self.config.request_timeout_seconds,
            )
        )

    async def ask(
        self,
        kind: type[ModelT],
        method: str,
        path: str,
        *,
        json: object = None,
        params: Mapping[str, str | int] | None = None,
    ) -> ModelT:
        """A question that is answered at once."""
        return read_model(await self.send(method, path, json=json, params=params), kind)

    async def submit(
        self,
        path: str,
        *,
        json: object = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        persist: bool = True,
        busy_is_final: bool = False,
    ) -> UntypedAPIFuture:
        """Hand in work, once or until the server has it; the receipt names its result.

        A bill is waited out either way. A 429 is the caller's to wait out, if final.
        """
        if persist:
            response = await self.send(
                "POST", path, json=json, content=content, headers=headers, busy_is_final=busy_is_final
            )
        else:
            response = await self._bill.wait_out(
                lambda: self.transport.request("POST", path, json=json, content=content, headers=headers)
            )
        return read_model(response, UntypedAPIFuture)

    async def result(
        self, receipt: UntypedAPIFuture, result_type: ResultType[T], clock: ProgressClock | None = None
    ) -> T:
        """Wait for the result of submitted work; errors as in `polling.await_result`."""
        clock = clock or ProgressClock()
        with self._board.watch(result_type.name) as waiting:
            return await self._bill.wait_out(
                lambda: await_result(
                    self.transport, self.config, receipt.request_id, result_type, waiting, clock
                )
            )


async def _open(
    endpoint: Endpoint,
    config: ClientConfig,
    tasks: Set[asyncio.Task[Any]],
    server_config: ClientConfigResponse | None,
) -> tuple[Transport, ClientConfigResponse]:
    from tinkerlite.transport import Transport  # not before a server is to be reached, as it takes a while

    transport = await Transport.open(endpoint, config, background_loop(), tasks)
    try:
        return transport, server_config or await _handshake(transport, config)
    except APIConnectionError as error:
        await transport.aclose()
        raise APIConnectionError(
            error.request,
            f"no server answers at {endpoint.base_url} ({error.message}). Start one with `tinkerlite serve "
            '--model NAME`, or run it in this process with base_url="local://NAME"',
        ) from error
    except BaseException:
        await transport.aclose()
        raise


async def _handshake(transport: Transport, config: ClientConfig) -> ClientConfigResponse:
    """What the server asks of its clients; older servers ask nothing."""
    try:
        response = await resend(
            lambda: transport.request("POST", "client/config", json={"sdk_version": PROTOCOL_VERSION}),
            first_seconds=config.first_backoff_seconds,
            budget_seconds=config.startup_timeout_seconds,
            attempt_seconds=config.request_timeout_seconds,
        )
    except NotFoundError:
        # From before chunks could arrive out of order.
        return ClientConfigResponse(parallel_fwdbwd_chunks=False)
    return read_model(response, ClientConfigResponse)
