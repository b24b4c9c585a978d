"""Bodies compressed with zstd, where the package for it is installed.

A server may ask for them, and takes plain ones as well.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType


def compressed(content: bytes) -> bytes | None:
    """The bytes as one zstd frame; None where `zstandard` is not installed."""
    zstandard = _zstandard()
    return None if zstandard is None else zstandard.ZstdCompressor().compress(content)


@cache
def _zstandard() -> ModuleType | None:
    # Looked for once: a search that fails is not remembered by the import system.
    try:
        import zstandard
    except ImportError:
        return None
    return zstandard
