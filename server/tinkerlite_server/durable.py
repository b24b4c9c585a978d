"""What survives a crash of the machine: folders are forced to the disk before they get their name."""

from __future__ import annotations

import os
from pathlib import Path


def sync_folder(folder: Path) -> int:
    """Flush everything below a folder, then the folder itself; how many bytes its files hold."""
    size_bytes = 0
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder before the folder
        flush(path)
        size_bytes += path.stat().st_size if path.is_file() else 0
    flush(folder)
    return size_bytes


def flush(path: Path) -> None:
    """Flush one file, or the names in one folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
