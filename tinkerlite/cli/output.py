"""What commands print: a table for people, or one JSON document for scripts.

Standard output has the answer and nothing else; remarks go to standard error.
"""

from __future__ import annotations

import json
import math
from datetime import datetime
from typing import Any

from pydantic import BaseModel
from rich import box
from rich.console import Console
from rich.table import Column, Table

NARROWEST = 80


def plain_console(*, stderr: bool = False, width: int | None = None) -> Console:
    """A console that prints text as it is; to rich's eye the id of a run contains a picture (`:train:`)."""
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


def print_json(document: Any) -> None:
    """One document: protocol objects as the protocol writes them, numbers that JSON lacks as null."""
    print(json.dumps(_plain(document), indent=2))


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json", exclude_none=True))
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def new_table(*names: str) -> Table:
    """A table whose first column is an identifier, shown in full."""
    first = Column(names[0], overflow="fold", min_width=20)
    return Table(first, *names[1:], box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)


def print_table(table: Table) -> None:
    """As wide as the terminal; into a file or a pipe, as wide as it needs, so that a row is a line."""
    console = plain_console()
    if not console.is_terminal:
        widest = console.measure(table, options=console.options.update(width=10_000)).maximum
        console = plain_console(width=max(NARROWEST, widest))
    console.print(table)


def print_page(table: Table, offset: int, total: int) -> None:
    """A page of a listing that has `total` entries, the first `offset` left out."""
    if not table.row_count:
        remark("there are none" if total == 0 else f"there are {total}, and none after --offset {offset}")
        return
    print_table(table)
    shown = offset + table.row_count
    if shown < total:
        remark(f"{shown} of {total}; the rest: --offset {shown}")


def remark(text: str) -> None:
    """A line beside the answer, such as how much was left out of it."""
    plain_console(stderr=True).print(text, style="dim", soft_wrap=True)


def cell(value: object) -> str:
    """A value as a table shows it; what the server did not say is a question mark."""
    if value is None:
        return "?"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M")
    return str(value)


def size(size_bytes: int | None) -> str:
    """1234567 as 1.2 MB."""
    if size_bytes is None:
        return "?"
    amount, unit = float(size_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
