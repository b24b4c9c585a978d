"""Means over seeds with 95% intervals, for the few seeds that experiments have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

# Two-sided 95% quantiles of Student's t by degrees of freedom; from ten on the last is close enough above.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Estimate:
    """A mean, and how far the truth may lie from it."""

    mean: float
    half: float | None
    """Half the width of the 95% interval; None for a single value, which has none."""
    values: tuple[float, ...]

    def text(self, show: Callable[[float], str]) -> str:
        """As in "83.0% ± 4.1%"."""
        return show(self.mean) if self.half is None else f"{show(self.mean)} ± {show(self.half)}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95% t interval of values that are independent and roughly normal.

    Raises:
        ValueError: there are none.
    """
    if not values:
        raise ValueError("no values, no mean")
    n = len(values)
    if n == 1:
        return Estimate(values[0], None, tuple(values))
    t = T_95[min(n - 2, len(T_95) - 1)]
    return Estimate(fmean(values), t * stdev(values) / n**0.5, tuple(values))


MARGIN = 0.05
"""Of a share, such as accuracy: what may be lost where nothing is said to be."""


def is_no_loss(change: Estimate) -> bool | None:
    """Whether a change of a share is no loss, give or take MARGIN.

    Yes if its whole interval lies above -MARGIN, no if it lies below 0. None if the seeds leave it open, as a
    single one does: noise alone is no evidence that nothing was lost.
    """
    if change.half is None:
        return None
    if change.mean - change.half >= -MARGIN:
        return True
    return False if change.mean + change.half < 0 else None


def percent(value: float) -> str:
    """As in "83.0%"."""
    return f"{value:.1%}"


def times(value: float) -> str:
    """As in "9.0x"."""
    return f"{value:.1f}x"
