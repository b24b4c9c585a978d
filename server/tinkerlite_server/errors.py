"""Errors of the server, by who has to act.

    ServerError
    ├── UserError            the request is wrong; the message says what to change
    │   ├── BadRequest         400
    │   ├── UnknownName        404: no such model, session, run, checkpoint, sampler or request
    │   ├── Gone               410: it was here, and has ended or was let go
    │   └── NoRoom             400: it would not fit beside what is in memory
    ├── Forbidden            401
    ├── Busy                 429
    └── EngineFailure        running it failed, through no fault of the caller

Routes turn them into statuses; execution turns them into failed futures with a category.
"""

from __future__ import annotations


class ServerError(Exception):
    """Base of all errors here."""


class UserError(ServerError):
    """The caller can mend it; the message says how."""


class BadRequest(UserError):
    """Malformed, unsupported or contradictory.

    Args:
        field: the one that is wrong, where it is one; the message names it too.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class UnknownName(UserError):
    """Names something that this server does not hold, or not for this caller."""


class Gone(UserError):
    """Was here, and has ended or was let go."""


class NoRoom(UserError):
    """Would not fit into the memory that it may use, beside what is there already.

    Args:
        freeable: adapter ids whose weights take part of that memory.
    """

    def __init__(self, message: str, *, freeable: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.freeable = freeable


class Forbidden(ServerError):
    """The API key is missing or unknown. Nothing else of the request was read."""


class Busy(ServerError):
    """Too much is queued; later it may go."""


class EngineFailure(ServerError):
    """Execution failed: out of memory, a corrupt file, a defect."""
