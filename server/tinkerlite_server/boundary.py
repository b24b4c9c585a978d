"""The boundary that records one failure and lets its siblings go on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from tinkerlite_server.errors import EngineFailure, ServerError, UserError
from tinkerlite_server.futures import Failed

logger = logging.getLogger(__name__)

T = TypeVar("T")


def attempt(what: str, call: Callable[[], T]) -> T | ServerError:
    """What `call` returns, or the error that it raised.

    An error that is none of ours is a defect or a machine's limit: the log gets it in full, the
    caller its first line.
    """
    try:
        return call()
    except ServerError as error:
        return error
    except Exception as error:
        logger.exception("%s failed", what)
        return EngineFailure(f"{what} failed on the server: {type(error).__name__}: {error}")


def as_failure(error: ServerError) -> Failed:
    """The outcome of a future whose work raised this."""
    return Failed(str(error), "user" if isinstance(error, UserError) else "server")
