"""Checkpoint folders: written under another name, synced, then renamed, so that none is half there.

Folders are never deleted on request. What no checkpoint and no sampling session names any more,
and nobody reads, is collected, and that covers deleted, replaced and expired checkpoints as well
as what a crash left behind.
"""

from __future__ import annotations

import secrets
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tinkerlite_server.durable import flush, sync_folder

_UNFINISHED = ".unfinished-"


class CheckpointFolders:
    """The folders below `root`, each one checkpoint's files."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._root = root
        self._lock = threading.Lock()
        self._read: Counter[str] = Counter()

    def path(self, folder: str) -> Path:
        """Where a folder is."""
        return self._root / folder

    @contextmanager
    def reading(self, folder: str) -> Iterator[Path | None]:
        """Around what reads a folder: until it is done, the folder stays. None: it is gone already."""
        path = self.path(folder)
        with self._lock:
            self._read[folder] += 1
        try:
            yield path if path.is_dir() else None
        finally:
            with self._lock:
                self._read[folder] -= 1
                if not self._read[folder]:
                    del self._read[folder]

    def write(self, label: str, fill: Callable[[Path], None], register: Callable[[str, int], None]) -> None:
        """Make a folder; if anything raises on the way, nothing is left.

        Args:
            label: how the folder's name begins, for people who look.
            fill: writes the files into the folder that it is given.
            register: is told the complete folder's name, and how many bytes it holds.
        """
        unfinished = self._root / f"{_UNFINISHED}{secrets.token_hex(8)}"
        unfinished.mkdir()
        try:
            fill(unfinished)
            size_bytes = sync_folder(unfinished)
            name = f"{label}.{secrets.token_hex(4)}"
            # Under the lock, since an unregistered folder looks like a forgotten one.
            with self._lock:
                unfinished.rename(self._root / name)
                flush(self._root)
                register(name, size_bytes)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def collect(self, in_use: Callable[[], set[str]], *, unfinished: bool = False) -> None:
        """Delete the folders that are not in use; `unfinished` ones too when nothing can be writing."""
        with self._lock:
            keep = in_use() | self._read.keys()
            for folder in self._root.iterdir():
                half = folder.name.startswith(_UNFINISHED)
                if folder.name not in keep and (unfinished or not half):
                    shutil.rmtree(folder, ignore_errors=True)
