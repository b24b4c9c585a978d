"""The figure of a run: each row's ratio to the best alternative, and to the floor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from benchmarks.report import Result

_BETTER, _WORSE, _FLOOR = "#2b7a4b", "#b5483a", "#888888"


def draw(results: Sequence[Result], caption: str, path: Path) -> None:
    """Write a PNG. Rows without any ratio are left out.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [r for r in results if r.ratio_to_best is not None or r.ratio_to_floor is not None][::-1]
    figure, axes = pyplot.subplots(figsize=(10, 1.2 + 0.55 * len(shown)), layout="constrained")
    for y, result in enumerate(shown):
        if (best := result.ratio_to_best) is not None:
            axes.barh(y, best - 1, left=1, height=0.5, color=_BETTER if best >= 1 else _WORSE)
            label = f"{best:.2f} x {result.best}"
            axes.text(1.01, y, label, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        if (floor := result.ratio_to_floor) is not None:
            axes.plot(floor, y, "d", color=_FLOOR, markersize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(shown)), [fill(result.name, 58) for result in shown], fontsize=8)
    axes.set_xlabel(
        "bars: times better than the best alternative; diamonds: share of the machine's floor", fontsize=8
    )
    axes.set_title(caption, fontsize=9)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
