"""Errors in OpenAI's shape, which its clients turn into their exception types."""

from __future__ import annotations

from typing import Any

from tinkerlite_server.errors import BadRequest, UnknownName


def error_body(status: int, error: Exception | str) -> dict[str, Any]:
    """The body of an error answer, or of the event that ends a stream."""
    kind, code = _KINDS.get(status, ("invalid_request_error" if status < 500 else "server_error", None))
    param = error.field if isinstance(error, BadRequest) else None
    if isinstance(error, UnknownName):  # the one thing that these requests name
        param, code = "model", "model_not_found"
    return {"error": {"message": str(error), "type": kind, "param": param, "code": code}}


_KINDS: dict[int, tuple[str, str | None]] = {
    401: ("invalid_request_error", "invalid_api_key"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}
"""Type and code of a status, where they are not the usual ones."""
