"""Rows of data sets, from the Hugging Face hub or from local files of the same shape.

Streamed, so their size does not matter. Needs the package `datasets` (dependency group `experiments`),
which is imported when a row is first asked for. Knows nothing about what is in the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
"""Builders of `datasets` by the suffix of a local file."""
SHUFFLED = 10_000
"""Rows among which a stream is shuffled."""


class HubDataError(ValueError):
    """Rows cannot be had, or are of another shape than they should be."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set by its hub id, or a file."""

    name: str
    """As in "zwhe99/DeepMath-103K", or a path that ends in .jsonl, .json or .parquet."""
    split: str = "train"
    """Of the data set; a file has only this one."""

    def rows(self, seed: int | None = None) -> Iterator[dict[str, Any]]:
        """All rows once; in their own order without a seed.

        Raises:
            HubDataError: `datasets` is not installed, or there is no such file.
        """
        if find_spec("datasets") is None:
            raise HubDataError(
                f"reading {self.name} needs the package datasets: pip install --group experiments"
            )
        datasets: Any = import_module("datasets")  # untyped, as it need not be installed
        path = Path(self.name)
        if path.suffix in FORMATS:
            if not path.is_file():
                raise HubDataError(f"there is no file {path}")
            if not path.stat().st_size:  # `datasets` cannot make columns of nothing
                return
            stream = datasets.load_dataset(
                FORMATS[path.suffix], data_files=str(path), split="train", streaming=True
            )
        else:
            stream = datasets.load_dataset(self.name, split=self.split, streaming=True)
        if seed is not None:
            stream = stream.shuffle(seed=seed, buffer_size=SHUFFLED)
        yield from stream

    def endless(self, seed: int) -> Iterator[dict[str, Any]]:
        """All rows again and again, in another order each time.

        Raises:
            HubDataError: there is not a single row, or none can be had.
        """
        passes = 0
        while True:
            found = False
            for row in self.rows(seed=seed + 1_000_003 * passes):
                found = True
                yield row
            if not found:
                raise HubDataError(f"{self.name} has no rows")
            passes += 1


def text_of(row: dict[str, Any], column: str, source: Source) -> str:
    """A column that must hold text.

    Raises:
        HubDataError: it does not; the message names what there is.
    """
    value = row.get(column)
    if not isinstance(value, str):
        raise HubDataError(f"{source.name} has no text in column {column!r}; its columns are {sorted(row)}")
    return value
