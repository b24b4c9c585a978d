"""Comparing runs: their curves on common axes, their last figures with intervals, and what differs.

From the folders of any recipes, and of demos. Knows nothing about how the runs were made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from cookbook.charts import Series, line_chart
from cookbook.metrics import Row, read_metrics

COLOURS = 8
"""Of runs, in report.css; further runs begin again."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run, as its folder has it."""

    name: str
    rows: list[Row]
    settings: dict[str, Any]
    """Empty for runs that were not made by a recipe."""

    def last(self, figure: str) -> Row | None:
        """The last row that has a figure."""
        return next((row for row in reversed(self.rows) if row.get(figure) is not None), None)


@dataclass(frozen=True)
class Figure:
    """Something that runs are compared by."""

    key: str
    title: str
    interval: str = ""
    """Key of its 95% interval, where it has one."""
    as_percent: bool = False

    def text(self, value: float) -> str:
        """A value, as tables show it."""
        if self.as_percent:
            return f"{value:.1%}"
        return f"{value:.1e}" if 0 < abs(value) < 0.001 else f"{value:.3f}"


FIGURES = (
    Figure("accuracy", "Accuracy on held-out problems", "accuracy_interval", as_percent=True),
    Figure("reverse_kl", "Reverse KL to the teacher, nats per token", "reverse_kl_interval"),
    Figure("reward", "Reward of the rollouts", "reward_interval"),
    Figure("loss_per_token", "Supervised loss, nats per token"),
    Figure("entropy", "Entropy, nats per token"),
    Figure("truncated_fraction", "Truncated completions", as_percent=True),
    Figure("completion_length", "Tokens per completion"),
    Figure("logprob_difference_mean", "Sampler against trainer, nats per token"),
)
"""Each is shown if a run has it."""
INTERVALS = (
    "The last value of each figure, with its 95% interval: of accuracy over other held-out problems "
    "(Wilson), of KL and reward over other prompts. Intervals say nothing about other seeds."
)


def write_comparison(folders: Sequence[Path], path: Path) -> Path:
    """Write the page that compares the runs in these folders; returns its path."""
    page = comparison_page(read_runs(folders))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in some folders; a demo's folder has several. Exits if one has none.

    They are called after their folders, or by their paths where two folders are called the same.
    """
    names = [folder.resolve().name for folder in folders]
    runs: list[Run] = []
    for folder, name in zip(folders, names, strict=True):
        metrics = folder / "metrics.jsonl"
        rows = read_metrics(metrics) if metrics.exists() else []
        if not rows:
            raise SystemExit(f"{folder} has no metrics.jsonl with a row in it: it is not the folder of a run")
        shown = name if names.count(name) == 1 else str(folder)
        started = folder / "run.json"
        settings: dict[str, Any] = {}
        if started.exists():
            settings = json.loads(started.read_text(encoding="utf-8"))["settings"]
        tags = list(dict.fromkeys(row.get("run", "") for row in rows))
        for tag in tags:
            own: list[Row] = [row for row in rows if row.get("run", "") == tag]
            runs.append(Run(name=shown if len(tags) == 1 else f"{shown}: {tag}", rows=own, settings=settings))
    return runs


def comparison_page(runs: Sequence[Run]) -> str:
    """The whole page."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    title = " and ".join(run.name for run in runs) if len(runs) < 3 else f"{len(runs)} runs"
    shown = [figure for figure in FIGURES if any(run.last(figure.key) for run in runs)]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>tinkerlite: {escape(title)}</title><style>{style}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            _legend(runs),
            '<div class="row wide">',
            *(_chart(figure, runs) for figure in shown),
            "</div>",
            "<h2>Where they ended</h2>",
            f"<p>{INTERVALS}</p>",
            _last_figures(shown, runs),
            _differences(runs),
            "</body></html>",
        ]
    )


def _colour(place: int) -> str:
    return f"--run{place % COLOURS}"


def _swatch(place: int) -> str:
    return f'<span class="swatch" style="background:var({_colour(place)})"></span>'


def _legend(runs: Sequence[Run]) -> str:
    names = "".join(f"<span>{_swatch(k)}{escape(run.name)}</span>" for k, run in enumerate(runs))
    return f'<div class="names">{names}</div>'


def _chart(figure: Figure, runs: Sequence[Run]) -> str:
    series: list[Series] = []
    for place, run in enumerate(runs):
        measured = [row for row in run.rows if row.get(figure.key) is not None]
        has_band = bool(figure.interval) and all(row.get(figure.interval) for row in measured)
        if measured:
            series.append(
                Series(
                    name=run.name,
                    colour=_colour(place),
                    points=[(row["step"], row[figure.key]) for row in measured],
                    band=[(low, high) for low, high in (row[figure.interval] for row in measured)]
                    if has_band
                    else (),
                )
            )
    chart = line_chart(
        series,
        x_label="step",
        y_label=figure.title,
        as_percent=figure.as_percent,
        named=False,
        x_span=(0, max(run.rows[-1]["step"] for run in runs)),
    )
    return f'<div class="card"><h3>{figure.title}</h3>{chart}</div>'


Cell = Callable[[Run], str]
"""What a table says of a run, as HTML."""


def _last_figures(shown: Sequence[Figure], runs: Sequence[Run]) -> str:
    rows: list[tuple[str, Cell]] = [(figure.title, _last(figure)) for figure in shown]
    rows += [("Steps", _steps), ("Time of updates, minutes", _minutes)]
    if any("stopped" in run.rows[-1] for run in runs):
        rows.append(("Stopped", _stopped))
    return _table(rows, runs)


def _last(figure: Figure) -> Cell:
    def cell(run: Run) -> str:
        row = run.last(figure.key)
        if row is None:
            return ""
        interval = row.get(figure.interval)
        around = f"[{figure.text(interval[0])}, {figure.text(interval[1])}]" if interval else ""
        return f'{figure.text(row[figure.key])} <span class="soft">{around}</span>'

    return cell


def _steps(run: Run) -> str:
    return str(run.rows[-1]["step"])


def _minutes(run: Run) -> str:
    timed = [sum(row["seconds"].values()) for row in run.rows if row.get("seconds")]
    return f"{sum(timed) / 60:.1f}" if timed else ""


def _stopped(run: Run) -> str:
    return f'<div class="stopped">{escape(run.rows[-1].get("stopped", ""))}</div>'


def _differences(runs: Sequence[Run]) -> str:
    """Settings that are not the same in all runs; all of them for a single run."""
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    if len(runs) > 1:
        names = [name for name in names if len({json.dumps(run.settings.get(name)) for run in runs}) > 1]
    if not names:
        return ""
    heading = "What they were made with" if len(runs) == 1 else "What differs in their settings"
    return f"<h2>{heading}</h2>{_table([(name, _setting(name)) for name in names], runs)}"


def _setting(name: str) -> Cell:
    return lambda run: escape(str(run.settings.get(name, "")))


def _table(rows: Sequence[tuple[str, Cell]], runs: Sequence[Run]) -> str:
    head = "".join(f"<th>{_swatch(place)}{escape(run.name)}</th>" for place, run in enumerate(runs))
    body = "".join(
        f"<tr><td>{escape(title)}</td>{''.join(f'<td>{cell(run)}</td>' for run in runs)}</tr>"
        for title, cell in rows
    )
    return f'<div class="card scroll"><table><tr><th></th>{head}</tr>{body}</table></div>'
