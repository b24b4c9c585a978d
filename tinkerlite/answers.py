"""What a server's answer says: a body of one of the protocol's types, or an error of ours.

Knows statuses, headers and bodies. Sends nothing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from tinkerlite.errors import (
    APIResponseValidationError,
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    BillingError,
    ConflictError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ResultGoneError,
    UnprocessableEntityError,
)

if TYPE_CHECKING:
    import httpx

ModelT = TypeVar("ModelT", bound=BaseModel)

_STATUS_ERRORS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    402: BillingError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    410: ResultGoneError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}
_SHOWN_CHARACTERS = 2000


def read_json(response: httpx.Response) -> dict[str, Any]:
    """The JSON object in an answer.

    Raises:
        APIResponseValidationError: it is something else.
    """
    try:
        body: object = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise _unexpected(response, f"expected a JSON object, got {response.text[:200]!r}")
    return cast(dict[str, Any], body)


def read_model(response: httpx.Response, kind: type[ModelT]) -> ModelT:
    """The answer as one of the protocol's types.

    Raises:
        APIResponseValidationError: a required field is missing or of the wrong type.
    """
    body = read_json(response)
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()
        )
        raise _unexpected(response, f"not a {kind.__name__}: {problems}") from error


def _unexpected(response: httpx.Response, problem: str) -> APIResponseValidationError:
    message = f"{response.request.method} {response.request.url}: {problem}"
    return APIResponseValidationError(response, response.text, message)


def status_error(response: httpx.Response, method: str, url: str) -> APIStatusError:
    """The error that an answer's status stands for."""
    status = response.status_code
    try:
        body: object = response.json()
    except ValueError:
        body = response.text
    detail = _detail(body)[:_SHOWN_CHARACTERS] or response.reason_phrase
    if response.is_redirect:
        detail = f"the server moved to {response.headers.get('location')}; use that as base_url"
    kind = InternalServerError if status >= 500 else _STATUS_ERRORS.get(status, APIStatusError)
    error = kind(f"{method} {url}: {status}: {detail}", response, body)
    error.retry_after_seconds = _retry_after(response.headers)
    if status == 401:
        error.add_note("The key comes from api_key=..., TINKERLITE_API_KEY or TINKER_API_KEY.")
    return error


def _detail(body: object) -> str:
    """What the server has to say, out of the shapes in which servers say it."""
    if isinstance(body, str):
        return body.strip()
    if isinstance(body, list):
        return "; ".join(_detail(item) for item in cast(list[object], body))
    if not isinstance(body, dict):
        return "" if body is None else str(body)
    fields = cast(dict[str, object], body)
    if "loc" in fields and "msg" in fields:  # FastAPI's own validation errors
        location = cast(list[object], fields["loc"])
        return f"{'.'.join(map(str, location))}: {fields['msg']}"
    for name in ("detail", "error", "message"):
        if name in fields:
            return _detail(fields[name])
    return str(fields)


def _retry_after(headers: httpx.Headers) -> float | None:
    """Retry-After in seconds: given in milliseconds, in seconds, or as a date."""
    from email.utils import parsedate_to_datetime

    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        value = headers.get("retry-after")
        if value is None:
            return None
        if value.strip().replace(".", "", 1).isdigit():
            return float(value)
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
