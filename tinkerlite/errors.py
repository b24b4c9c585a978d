"""Every error that the client raises on purpose.

TinkerError
├── InvalidRequest (also a ValueError)   found on this side, before anything was sent
│   ├── InvalidTensor                    not an array of numbers
│   ├── InvalidInput                     not a prompt
│   └── InvalidDatum                     a datum the loss cannot use
├── CapabilityError                      the backend lacks what was asked for
├── ClientClosedError                    the client was closed while, or before, it was asked
├── NotSubmittedError                    not sent, because an earlier operation of the run was lost
├── RequestFailedError                   the server accepted the request, and running it failed
├── StuckRequestError (also a TimeoutError)   no progress for longer than the client waits
└── APIError                             the HTTP exchange itself
    ├── APIConnectionError               no answer
    │   └── APITimeoutError
    ├── APIResponseValidationError       an answer that is not the protocol's
    └── APIStatusError                   an answer with an error status
        ├── BadRequestError 400            ├── NotFoundError 404
        ├── AuthenticationError 401        ├── ConflictError 409
        ├── BillingError 402               ├── UnprocessableEntityError 422
        ├── PermissionDeniedError 403      ├── RateLimitError 429
        └── ResultGoneError 410            └── InternalServerError 5xx
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx


class RequestErrorCategory(StrEnum):
    """Whose fault a failed request was, as far as the server says."""

    Unknown = "unknown"
    Server = "server"
    User = "user"


class TinkerError(Exception):
    """Base of all errors here."""


class InvalidRequest(TinkerError, ValueError):
    """A value that no server would accept; nothing was sent."""


class InvalidTensor(InvalidRequest):
    """Not a rectangular array of numbers, or CSR indices that contradict each other."""


class InvalidInput(InvalidRequest):
    """Not a prompt: no tokens, or chunks of the wrong kind."""


class InvalidDatum(InvalidRequest):
    """A datum that its loss cannot use; the message names datum and field."""


class CapabilityError(TinkerError):
    """The backend does not offer what was asked for."""


class ClientClosedError(TinkerError):
    """The client was closed; whatever was still waiting ends with this."""


class NotSubmittedError(TinkerError):
    """An operation that was not sent, since one before it in the same training run was lost.

    An optimizer step must not run on gradients that are not there. `__cause__` is that failure.
    """


class RequestFailedError(TinkerError):
    """The server accepted the request, and running it failed.

    `category` is "user" (the request was wrong), "server" or "unknown".
    """

    def __init__(self, message: str, request_id: str, category: RequestErrorCategory) -> None:
        super().__init__(message)
        self.message = message
        self.request_id = request_id
        self.category = RequestErrorCategory(category)

    def __reduce__(self) -> tuple[type, tuple[str, str, RequestErrorCategory]]:
        return type(self), (self.message, self.request_id, self.category)


class StuckRequestError(TinkerError, TimeoutError):
    """No progress on a request for longer than the client is willing to wait."""


class APIError(TinkerError):
    """Something went wrong in an HTTP exchange; `request` says in which, where it was made at all.

    `body` is the answer's decoded JSON, or its text.
    """

    def __init__(
        self, message: str, request: httpx.Request | None = None, *, body: object | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.request = request
        self.body = body

    @property
    def method(self) -> str:
        """The request's, or nothing."""
        return self.request.method if self.request else ""

    @property
    def url(self) -> str:
        """The request's, or nothing."""
        return str(self.request.url) if self.request else ""

    def __reduce__(self) -> tuple[Callable[..., APIError], tuple[type[APIError], dict[str, Any]]]:
        return _rebuild, (type(self), dict(self.__dict__))


def _rebuild(kind: type[APIError], state: dict[str, Any]) -> APIError:
    """Unpickle an error, whatever its arguments were."""
    error = kind.__new__(kind, state["message"])
    error.__dict__.update(state)
    return error


class APIConnectionError(APIError):
    """The server could not be reached, or the connection broke."""

    def __init__(self, request: httpx.Request | None = None, message: str = "the connection failed") -> None:
        super().__init__(message, request)


class APITimeoutError(APIConnectionError):
    """The server did not answer in time."""

    def __init__(self, request: httpx.Request | None = None, message: str = "no answer in time") -> None:
        super().__init__(request, message)


class APIResponseValidationError(APIError):
    """The answer is not what the protocol promises."""

    def __init__(
        self,
        response: httpx.Response | None = None,
        body: object | None = None,
        message: str = "the answer is not what the protocol promises",
    ) -> None:
        super().__init__(message, response.request if response else None, body=body)
        self.response = response


class APIStatusError(APIError):
    """The server answered with an error status.

    `retry_after_seconds` is the server's advice on when to come back, if it gave one.
    """

    retry_after_seconds: float | None = None

    def __init__(self, message: str, response: httpx.Response, body: object | None) -> None:
        super().__init__(message, response.request, body=body)
        self.response = response
        self.status_code = response.status_code


class BadRequestError(APIStatusError):
    """400: the request is malformed or unsupported."""


class AuthenticationError(APIStatusError):
    """401: the API key is missing or unknown."""


class BillingError(APIStatusError):
    """402: the account cannot pay."""


class PermissionDeniedError(APIStatusError):
    """403: the key is known, and this is not allowed."""


class NotFoundError(APIStatusError):
    """404: no such model, session, checkpoint or request."""


class ConflictError(APIStatusError):
    """409: it clashes with what the server holds."""


class ResultGoneError(APIStatusError):
    """410: the result was evicted before it was fetched."""


class UnprocessableEntityError(APIStatusError):
    """422: well-formed, but not valid."""


class RateLimitError(APIStatusError):
    """429: too many requests, for longer than the client was willing to wait."""


class InternalServerError(APIStatusError):
    """5xx: the server failed."""
