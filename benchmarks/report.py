"""Results: ratios, the JSON file, the table. Knows nothing about how anything was measured.

Ratios are of speed or economy, whichever way the unit points: above 1 we are better than the best
alternative, and 1 is the floor. A throughput's ratio is ours / theirs, a time's or a size's theirs / ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

OURS = "tinkerlite"
"""Our name among the reasons why somebody was skipped."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A row with its numbers. Whoever has none is in `skipped`, with the reason."""

    key: str
    name: str
    unit: str
    higher_is_better: bool
    ours: float | None
    alternatives: Mapping[str, float]
    floor: float | None
    skipped: Mapping[str, str]
    work: Mapping[str, int]
    """Sizes, as in `Work`."""
    repetitions: Mapping[str, Sequence[float]]
    """Every repetition of everyone; the figures above are their medians."""

    @property
    def best(self) -> str | None:
        """The alternative that does best; where there is another, not one of ours."""
        others = [name for name in self.alternatives if not name.startswith(OURS)] or [*self.alternatives]
        if not others:
            return None
        choose = max if self.higher_is_better else min
        return choose(others, key=lambda name: self.alternatives[name])

    @property
    def ratio_to_best(self) -> float | None:
        """How many times better than the best alternative."""
        return None if self.best is None else self._ratio(self.alternatives[self.best])

    @property
    def ratio_to_floor(self) -> float | None:
        """How much of what is physically possible."""
        return self._ratio(self.floor)

    def _ratio(self, other: float | None) -> float | None:
        if not self.ours or not other:
            return None
        return self.ours / other if self.higher_is_better else other / self.ours

    def to_json(self) -> dict[str, Any]:
        """All fields and what follows from them."""
        return {
            **asdict(self),
            "best_alternative": self.best,
            "ratio_to_best": self.ratio_to_best,
            "ratio_to_floor": self.ratio_to_floor,
        }


def write_json(path: Path, context: Mapping[str, Any], results: Sequence[Result]) -> None:
    """One file a run: where it was made, the machine's own rates among it, and the rows."""
    content = {**context, "rows": [result.to_json() for result in results]}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def print_table(results: Sequence[Result], console: Console) -> None:
    """Rows, then everyone who was skipped, by reason."""
    title = "times better than the best alternative, and share of the machine's floor"
    table = Table(title=title, box=SIMPLE, pad_edge=False)
    for heading in ("row", "unit"):
        table.add_column(heading, no_wrap=True)
    for heading in ("ours", "best", "times", "floor", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("best alternative", overflow="fold")
    for result in results:
        table.add_row(
            result.key,
            result.unit,
            number(result.ours),
            number(None if result.best is None else result.alternatives[result.best]),
            ratio(result.ratio_to_best),
            number(result.floor),
            ratio(result.ratio_to_floor),
            result.best or "-",
        )
    console.print(table)
    reasons: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for who, reason in result.skipped.items():
            reasons.setdefault((who, reason), []).append(result.key)
    for (who, reason), keys in reasons.items():
        console.print(f"skipped {who}: {reason} ({', '.join(keys)})", style="dim", highlight=False)


def number(value: float | None) -> str:
    """Three significant digits, without an exponent."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ratio(value: float | None) -> str:
    """Two decimals."""
    return "-" if value is None else f"{value:.2f}"
