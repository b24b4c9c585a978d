"""How figures look: one style, and curves of several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"sft": "#8a8a8a", "rl": "#d1495b", "opd": "#00798c", "full": "#30638e", "teacher": "#3a3a3a"}
"""By method; the same in every figure."""


def panels(count: int, *, width: float = 4.6, height: float = 3.4) -> tuple[Figure, list[Any]]:
    """A figure of so many plots side by side, without a window."""
    from matplotlib.figure import Figure  # not needed to run an experiment, and slow to import

    figure = Figure(figsize=(width * count, height), layout="constrained")
    axes: list[Any] = [figure.add_subplot(1, count, place + 1) for place in range(count)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, axes


def curves(
    axis: Any, seeds: Sequence[Sequence[tuple[float, float]]], *, label: str, colour: str, **style: Any
) -> None:
    """One thin line a seed, all under one label."""
    for index, points in enumerate(seeds):
        axis.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=colour,
            label=label if index == 0 else None,
            marker=style.get("marker", "."),
            linewidth=1.3,
            alpha=0.85,
            linestyle=style.get("linestyle", "-"),
        )


def as_percent(axis: Any, label: str) -> None:
    """The y axis shows shares from 0 to 100%."""
    from matplotlib.ticker import PercentFormatter

    axis.set_ylim(-0.02, 1.02)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_ylabel(label)
