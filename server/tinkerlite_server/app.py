"""The FastAPI application: routes, errors as statuses, and a bound on bodies.

    create_app(settings, engine)

Under uvicorn its lifespan starts and stops the service; in process, where nobody runs a
lifespan, `app.state.service` has `startup` and `shutdown`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinkerlite.errors import InvalidRequest
from tinkerlite_server.engine.protocols import Engine
from tinkerlite_server.errors import BadRequest, Busy, Forbidden, Gone, NoRoom, ServerError, UnknownName
from tinkerlite_server.routes import openai, router
from tinkerlite_server.routes.exchange import reply
from tinkerlite_server.routes.openai.refusals import error_body
from tinkerlite_server.service import Service
from tinkerlite_server.settings import Settings

logger = logging.getLogger(__name__)

STATUSES: dict[type[Exception], int] = {
    BadRequest: 400,
    InvalidRequest: 400,  # what the wire codec and the types refuse
    UnknownName: 404,
    Gone: 410,
    NoRoom: 400,
    Forbidden: 401,
    Busy: 429,
    ServerError: 500,
}
"""The status of each error; the nearest base class counts."""


def create_app(settings: Settings, engine: Engine) -> FastAPI:
    """An application that serves `engine`.

    Raises:
        FolderInUse: another server is running on the data folder.
    """
    service = Service(settings, engine)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.startup()
        yield
        await service.shutdown()

    app = FastAPI(title="tinkerlite", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service
    app.include_router(router)
    app.include_router(openai.router)
    for kind in STATUSES:
        app.add_exception_handler(kind, _answer_error)
    app.add_exception_handler(StarletteHTTPException, _answer_http_error)
    app.add_exception_handler(RequestValidationError, _answer_query_error)
    app.add_middleware(Boundary, max_body_bytes=settings.limits.max_body_bytes)
    return app


def _answer_error(request: Request, error: Exception) -> Response:
    status = next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)
    headers = {}
    if status == 429:
        headers["Retry-After"] = "1"
    if status == 401:
        headers["WWW-Authenticate"] = "X-API-Key"
    if status == 500:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _refusal(request.url.path, status, error, **headers)


def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    detail = str(error.detail)
    if error.status_code in (404, 405):
        detail = f"{request.method} {request.url.path} is not a route of this server"
    return _refusal(request.url.path, error.status_code, detail, **(error.headers or {}))


def _answer_query_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return _refusal(request.url.path, 400, f"{request.method} {request.url.path}: {field}: {first['msg']}")


def _refusal(path: str, status: int, error: Exception | str, **headers: str) -> Response:
    """An error answer, in the shape that the surface's clients read."""
    if path.startswith(f"{openai.PREFIX}/"):
        return reply(error_body(status, error), status, **headers)
    return reply({"detail": str(error)}, status, **headers)


class Boundary:
    """Outermost: bodies of bounded size, and one request's defect stays its own.

    The size is counted while the body streams in, since a header may lie or be absent.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received, answered = 0, False

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise HTTPException(
                    413,
                    f"the body is larger than {self._max_body_bytes} bytes; send less at once "
                    "(forward_backward requests add up)",
                )
            return message

        async def watched(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self._app(scope, bounded, watched)
        except ClientDisconnect:
            logger.info("%s %s: the client left before it had its answer", scope["method"], scope["path"])
        except Exception:  # recorded, and the other requests go on
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if not answered:
                error = _refusal(scope["path"], 500, "an error in the server; its log has the details")
                await error(scope, receive, send)
