"""One process at a time: a lock on a file, which the system lifts when the process ends, however it ends."""

from __future__ import annotations

import fcntl
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


class InUse(RuntimeError):
    """Another process is at work there."""


@contextmanager
def locked(file: Path, what: str) -> Generator[None, None, None]:
    """Nobody else holds the file until the end of the block. It and its folder are made if need be, and stay.

    Raises:
        InUse: somebody holds it already; `what` says what that means.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InUse(
                f"another process is at work on {what}; give this one a folder of its own (--out)"
            ) from error
        yield
