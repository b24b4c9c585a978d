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
from typing import Any, Literal

RequestErrorCategory = Literal["user", "server", "unknown"]


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
        self.category: RequestErrorCategory = category

    def __reduce__(self) -> tuple[type, tuple[str, str, RequestErrorCategory]]:
        return type(self), (self.message, self.request_id, self.category)


class StuckRequestError(TinkerError, TimeoutError):
    """No progress on a request for longer than the client is willing to wait."""


class APIError(TinkerError):
    """Something went wrong in an HTTP exchange; `method` and `url` say in which."""

    def __init__(self, message: str, *, method: str = "", url: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.method = method
        self.url = url

    def __reduce__(self) -> tuple[Callable[..., APIError], tuple[type[APIError], dict[str, Any]]]:
        return _rebuild, (type(self), dict(self.__dict__))


def _rebuild(kind: type[APIError], state: dict[str, Any]) -> APIError:
    """Unpickle an error whose arguments are keywords."""
    error = kind.__new__(kind, state["message"])
    error.__dict__.update(state)
    return error


class APIConnectionError(APIError):
    """The server could not be reached, or the connection broke."""


class APITimeoutError(APIConnectionError):
    """The server did not answer in time."""


class APIResponseValidationError(APIError):
    """The answer is not what the protocol promises."""


class APIStatusError(APIError):
    """The server answered with an error status.

    `body` is its decoded JSON, or its text; `retry_after_seconds` is the server's advice on when
    to come back, if it gave one.
    """

    retry_after_seconds: float | None = None

    def __init__(
        self, message: str, *, status_code: int, body: object = None, method: str = "", url: str = ""
    ) -> None:
        super().__init__(message, method=method, url=url)
        self.status_code = status_code
        self.body = body


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
