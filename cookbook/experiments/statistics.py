"""Means over seeds with 95% intervals, for the few seeds that experiments have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import fmean, stdev

from cookbook.evaluation import t_95


@dataclass(frozen=True)
class Estimate:
    """A mean, and how far the truth may lie from it."""

    mean: float
    half: float | None
    """Half the width of the 95% interval; None for a single value, which has none."""
    values: tuple[float, ...]

    def text(self, show: Callable[[float], str]) -> str:
        """As in "83.0% ± 4.1%"; a width has no sign, even where means are shown with theirs."""
        return show(self.mean) if self.half is None else f"{show(self.mean)} ± {show(self.half).lstrip('+')}"


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
    return Estimate(fmean(values), t_95(n - 1) * stdev(values) / n**0.5, tuple(values))


def estimate_known(values: Sequence[float | None]) -> Estimate | None:
    """The same of values that may be unknown; None if one of them is."""
    known = [value for value in values if value is not None]
    return estimate(known) if len(known) == len(values) else None


def negated(measured: Estimate) -> Estimate:
    """Of the opposite of every value."""
    return Estimate(0 - measured.mean, measured.half, tuple(0 - value for value in measured.values))


@dataclass(frozen=True)
class Ratio:
    """A geometric mean of ratios: twice as much and half as much cancel out."""

    logs: Estimate

    @property
    def mean(self) -> float:
        """The mean itself."""
        return exp(self.logs.mean)

    @property
    def text(self) -> str:
        """As in "2.3x (1.7x to 3.1x)"."""
        if self.logs.half is None:
            return times(self.mean)
        low, high = (exp(self.logs.mean + sign * self.logs.half) for sign in (-1, 1))
        return f"{times(self.mean)} ({times(low)} to {times(high)})"

    def reaches(self, bar: float) -> bool | None:
        """See `reaches`."""
        return reaches(self.logs, log(bar))


def estimate_ratio(values: Sequence[float]) -> Ratio:
    """Geometric mean of positive values, with the t interval of their logarithms.

    Raises:
        ValueError: there are none.
    """
    return Ratio(estimate([log(value) for value in values]))


def reaches(measured: Estimate, bar: float) -> bool | None:
    """Whether the truth is at least the bar.

    Yes if the whole interval is, no if all of it lies below. None if the seeds leave it open, as a single one
    does.
    """
    if measured.half is None:
        return None
    if measured.mean - measured.half >= bar:
        return True
    return False if measured.mean + measured.half < bar else None


def is_more(difference: Estimate) -> bool | None:
    """Whether a difference is above 0. None if 0 is in its interval, or there is none."""
    if difference.half is None or abs(difference.mean) <= difference.half:
        return None
    return difference.mean > 0


MARGIN = 0.05
"""Of a share, such as accuracy: what may be lost where nothing is said to be."""


def is_no_loss(change: Estimate) -> bool | None:
    """Whether a change of a share is no loss, give or take MARGIN.

    Yes if its whole interval lies above -MARGIN, no if it lies below 0. None if the seeds leave it open, as a
    single one does: noise alone is no evidence that nothing was lost.
    """
    if reaches(change, -MARGIN):
        return True
    return False if reaches(change, 0.0) is False else None


def all_hold(verdicts: Sequence[bool | None]) -> bool | None:
    """False if one is; else open if one is."""
    return False if False in verdicts else None if None in verdicts else True


def percent(value: float) -> str:
    """As in "83.0%"."""
    return f"{value:.1%}"


def times(value: float) -> str:
    """As in "9.0x"."""
    return f"{value:.1f}x"
