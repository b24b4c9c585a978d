"""Line charts as SVG text: readable in light and dark, no scripts, nothing fetched.

Colours are CSS variables of the page they are put in (`report.css`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 44
NAMES = 64
"""More on the right where the lines are named at their ends."""
FEW_POINTS = 50
"""Beyond so many, the points of a line are drawn smaller."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line, with an optional band around it."""

    name: str
    colour: str
    """A CSS variable, such as "--opd"."""
    points: Sequence[tuple[float, float]]
    """(x, y), x rising."""
    band: Sequence[tuple[float, float]] = ()
    """(low, high) at each point, or nothing."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """A dashed horizontal line with a label at its right end."""

    name: str
    y: float


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    as_percent: bool = False,
    levels: Sequence[Level] = (),
    named: bool = True,
    x_span: tuple[float, float] | None = None,
) -> str:
    """An SVG of lines over a common x; the y axis starts at 0 unless a value is below it.

    `named` writes the names of the series at their ends; without it the page needs a legend. `x_span`
    is where the x axis begins and ends, if not with the points.

    Raises:
        ValueError: there is no point to draw.
    """
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points] + [y for s in series for pair in s.band for y in pair]
    if not xs:
        raise ValueError("a chart needs at least one point")
    x_low, x_high = x_span or (min(xs), max(xs))
    x_ticks = [x for x in ticks(x_low, x_high) if x_low <= x <= x_high]
    y_ticks = [0.0, 0.25, 0.5, 0.75, 1.0] if as_percent else ticks(min(0.0, *ys), max(ys))
    frame = _Frame(
        x_low=x_low,
        x_high=x_high,
        y_low=y_ticks[0],
        y_high=max(y_ticks[-1], *ys),
        right=WIDTH - RIGHT - (NAMES if named else 0),
    )
    label = escape(f"{y_label} by {x_label}")
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">']
    parts += [_y_tick(frame, y, f"{y:.0%}" if as_percent else f"{y:g}") for y in y_ticks]
    parts += [_text(frame.x(x), HEIGHT - BOTTOM + 18, f"{x:g}", "middle") for x in x_ticks]
    parts.append(_text((LEFT + frame.right) / 2, HEIGHT - 8, x_label, "middle"))
    parts += [_level(frame, level) for level in levels]
    parts += [_band(frame, s) for s in series if s.band]
    parts += [_line(frame, s, as_percent) for s in series]
    if named:
        parts += _end_labels(frame, series)
    parts.append("</svg>")
    return "\n".join(parts)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that span low..high, about so many of them."""
    if high <= low:
        return [low, low + 1]
    raw = (high - low) / about
    magnitude = 10 ** floor(log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw)
    return [round(k * step, 10) for k in range(floor(low / step), ceil(high / step) + 1)]


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """Maps data to the drawing."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    right: float
    """Where the x axis ends, in the drawing."""

    def x(self, value: float) -> float:
        span = self.x_high - self.x_low or 1.0
        return LEFT + (value - self.x_low) / span * (self.right - LEFT)

    def y(self, value: float) -> float:
        span = self.y_high - self.y_low or 1.0
        return HEIGHT - BOTTOM - (value - self.y_low) / span * (HEIGHT - TOP - BOTTOM)

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)


def _text(x: float, y: float, text: str, anchor: str, style: str = "") -> str:
    colour = f' style="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{colour}>{escape(text)}</text>'


def _y_tick(frame: _Frame, value: float, label: str) -> str:
    y = frame.y(value)
    line = f'<line class="grid" x1="{LEFT}" x2="{frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _text(LEFT - 8, y + 4, label, "end")


def _level(frame: _Frame, level: Level) -> str:
    y = frame.y(level.y)
    line = f'<line class="level" x1="{LEFT}" x2="{frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _text(LEFT + 6, y - 5, level.name, "start")


def _band(frame: _Frame, series: Series) -> str:
    xs = [x for x, _ in series.points]
    lows = [(x, low) for x, (low, _) in zip(xs, series.band, strict=True)]
    highs = [(x, high) for x, (_, high) in zip(xs, series.band, strict=True)]
    outline = frame.path([*highs, *reversed(lows)])
    return f'<polygon class="band" style="fill:var({series.colour})" points="{outline}"/>'


def _line(frame: _Frame, series: Series, as_percent: bool) -> str:
    marks: list[str] = []
    radius = 3 if len(series.points) <= FEW_POINTS else 1.5
    for x, y in series.points:
        tip = f"{series.name}, step {x:g}: {f'{y:.1%}' if as_percent else f'{y:.3f}'}"
        place = f'cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="{radius}"'
        marks.append(
            f'<circle {place} style="fill:var({series.colour})"><title>{escape(tip)}</title></circle>'
        )
    line = (
        f'<polyline class="line" style="stroke:var({series.colour})" points="{frame.path(series.points)}"/>'
    )
    return line + "".join(marks)


def _end_labels(frame: _Frame, series: Sequence[Series]) -> list[str]:
    """Names at the ends of the lines, pushed apart where they would overlap."""
    ends = sorted(((frame.y(s.points[-1][1]), s) for s in series if s.points), key=lambda end: end[0])
    labels: list[str] = []
    previous = float("-inf")
    for y, s in ends:
        previous = max(y, previous + 16)
        x = frame.x(s.points[-1][0]) + 9
        labels.append(_text(x, previous + 4, s.name, "start", f"fill:var({s.colour});font-weight:600"))
    return labels
