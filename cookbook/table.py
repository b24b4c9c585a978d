"""Tables of steps, a line each as soon as it is known.

Knows what rows look like, and nothing about how they came about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from cookbook.metrics import Row


@dataclass(frozen=True)
class Column:
    """A heading, and how to show a row under it."""

    title: str
    show: Callable[[Row], str]
    width: int


def number(key: str, digits: int) -> Callable[[Row], str]:
    """Shows a number with fixed decimals; nothing where the row has none."""
    return lambda row: "" if row.get(key) is None else f"{row[key]:.{digits}f}"


def percent(key: str) -> Callable[[Row], str]:
    """Shows a share as a percentage; nothing where the row has none."""
    return lambda row: "" if row.get(key) is None else f"{row[key]:.0%}"


def accuracy_text(row: Row) -> str:
    """Accuracy with its 95% interval: "83.0% [77, 88]"; nothing where the row has none."""
    if row.get("accuracy") is None:
        return ""
    low, high = row["accuracy_interval"]
    return f"{row['accuracy']:.1%} [{100 * low:.0f}, {100 * high:.0f}]"


ON_POLICY_COLUMNS = (
    Column("step", lambda row: str(row["step"]), 4),
    Column("reverse KL", number("reverse_kl", 3), 10),
    Column("accuracy [95%]", accuracy_text, 20),
    Column("reward", number("reward", 3), 6),
    Column("cut", percent("truncated_fraction"), 5),
    Column("tokens/s", number("tokens_per_second", 0), 8),
)
"""What an on-policy run shows. KL in nats per token; `cut` is the truncated share of the rollouts."""

SUPERVISED_COLUMNS = (
    Column("step", lambda row: str(row["step"]), 4),
    Column("loss/token", number("loss_per_token", 3), 10),
    Column("accuracy [95%]", accuracy_text, 20),
    Column("tokens/s", number("tokens_per_second", 0), 8),
)
"""What a supervised run shows. Loss in nats per trained token."""


class StepTable:
    """A table that grows while a run goes on, below its heading, which is printed when it is made.

    Lines, in a terminal too: a table that is drawn anew hides its newest rows once it is taller than the
    window.
    """

    def __init__(self, title: str, columns: Sequence[Column], console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._columns = columns
        self._console.print(title, style="italic", markup=False, soft_wrap=True)
        self._print_line([column.title for column in columns], style="bold")

    def add(self, row: Row) -> None:
        """Show one more step."""
        self._print_line([column.show(row) for column in self._columns])

    def _print_line(self, cells: Sequence[Any], style: str = "") -> None:
        padded = [
            f"{cell:>{max(column.width, len(column.title))}}"
            for column, cell in zip(self._columns, cells, strict=True)
        ]
        self._console.print("  ".join(padded), style=style, markup=False, soft_wrap=True)
