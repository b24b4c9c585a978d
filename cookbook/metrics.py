"""Metrics files: one JSON object a line, written so that a crash loses at most the row being written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

Row = Mapping[str, Any]
"""Figures of one step by name. Numbers, strings, None, and lists or mappings of these."""


class MetricsFile:
    """Appends rows to a JSONL file; each is on disk when `write` returns.

    Args:
        path: of the file; its folder is made.
        keep: rows at its beginning to keep, byte for byte. The others are dropped.

    Raises:
        ValueError: the file has fewer rows; or one to write holds NaN or an infinity, which JSON does
            not have; use None.
    """

    def __init__(self, path: Path, *, keep: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = _first_lines(path, keep) if keep else b""
        self._file = path.open("r+" if keep else "w", encoding="utf-8")
        self._file.truncate(len(kept))
        self._file.seek(len(kept))

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


def _first_lines(path: Path, count: int) -> bytes:
    lines = path.read_bytes().split(b"\n")[:-1]
    if len(lines) < count:
        raise ValueError(f"{path} has {len(lines)} rows, of which {count} were to be kept")
    return b"".join(line + b"\n" for line in lines[:count])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete rows of a metrics file; a last line without its newline was cut by a crash."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def figures(row: Row) -> dict[str, float]:
    """The numbers of a row, nested ones under "outer/inner": `accuracy_interval/0`, `seconds/sampling`."""
    return dict(_numbers(row, ""))


def without_not_finite(row: Row) -> dict[str, Any]:
    """The row with None in place of what JSON does not have."""
    return {name: _storable(value) for name, value in row.items()}


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value
    for name, inner in _inside(value):
        yield from _numbers(inner, f"{path}/{name}" if path else name)


def _inside(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(name), inner) for name, inner in cast("Mapping[Any, Any]", value).items()]
    if isinstance(value, list | tuple):
        return [(str(place), inner) for place, inner in enumerate(cast("Sequence[Any]", value))]
    return []


def _storable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _storable(inner) for name, inner in _inside(value)}
    if isinstance(value, list | tuple):
        return [_storable(inner) for _, inner in _inside(value)]
    return None if isinstance(value, float) and not isfinite(value) else value
