"""Another process that keeps one core busy, as a browser or a compiler would."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:  # were that killed, this would go on for ever
    for _ in range(1_000_000):
        pass
"""


@contextmanager
def busy_core() -> Iterator[None]:
    """One process that computes for as long as the block lasts, on whichever core the system gives it."""
    process = subprocess.Popen([sys.executable, "-c", _BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()
