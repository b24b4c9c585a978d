"""Metrics files: one JSON object a line, written so that a crash loses at most the row being written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Row = Mapping[str, Any]
"""Figures of one step by name. Numbers, strings, None, and lists or mappings of these."""


class MetricsFile:
    """Appends rows to a JSONL file; each is on disk when `write` returns.

    Raises:
        ValueError: a row holds NaN or an infinity, which JSON does not have; use None.
    """

    def __init__(self, path: Path, *, fresh: bool = True) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w" if fresh else "a", encoding="utf-8")

    def write(self, row: Row) -> None:
        """Append one row."""
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete rows of a metrics file; a last line without its newline was cut by a crash."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]
