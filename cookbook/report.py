"""Reports: one HTML file, made from the files that runs wrote.

    python -m cookbook.report runs/demo
    python -m cookbook.report runs/opd runs/rl ... [--out comparison.html]

A demo's folder has a report of its own: `summary.json`, `metrics.jsonl` and `rollouts.json` become
`report.html`. Other runs, one or several, are compared (`comparison`). The files need no network and
no script, and every text that came from a model or a task is escaped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from html import escape
from math import exp
from pathlib import Path
from typing import Any

from cookbook.charts import Level, Series, line_chart
from cookbook.comparison import write_comparison
from cookbook.metrics import read_metrics
from cookbook.summary import MODELS, verdict

KL_SHOWN = 6.0
"""Nats at which a token's shade is full."""

_NAMES = {"base": "Base model", "teacher": "Teacher (SFT)", "rl": "Student, RL", "opd": "Student, OPD"}


def write_report(folder: Path) -> Path:
    """Make `report.html` from the other files in the folder; returns its path."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    rows = read_metrics(folder / "metrics.jsonl")
    rollouts = json.loads((folder / "rollouts.json").read_text(encoding="utf-8"))
    path = folder / "report.html"
    path.write_text(report_page(summary, rows, rollouts), encoding="utf-8")
    return path


def report_page(
    summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], rollouts: Sequence[Mapping[str, Any]]
) -> str:
    """The whole page."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    facts = (
        f"{summary['model']} · task {summary['task']} · {summary['rollouts']} rollouts each · "
        f"{summary['seconds'] / 60:.1f} minutes on {summary['hardware']}"
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>tinkerlite: RL and on-policy distillation</title><style>{style}</style></head><body>",
            "<h1>Same student, same rollouts: RL and on-policy distillation</h1>",
            f'<p class="soft">{escape(facts)}</p>',
            *(f'<p class="verdict">{escape(sentence)}</p>' for sentence in verdict(summary)),
            _cards(summary),
            _charts(summary, rows),
            "<h2>The numbers</h2>",
            _table(rows),
            _shaded(rollouts),
            _settings(summary),
            "</body></html>",
        ]
    )


def _cards(summary: Mapping[str, Any]) -> str:
    cards: list[str] = []
    for model in MODELS:
        low, high = summary[model]["accuracy_interval"]
        cards.append(
            f'<div class="card"><h3 style="color:var(--{model})">{_NAMES[model]}</h3>'
            f'<div class="big">{summary[model]["accuracy"]:.1%}</div>'
            f'<div class="soft">95% interval {low:.1%} to {high:.1%}</div></div>'
        )
    return f'<div class="row">{"".join(cards)}</div>'


def _charts(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    kl = [_series(rows, run, "reverse_kl") for run in ("rl", "opd")]
    accuracy = [_series(rows, run, "accuracy", band="accuracy_interval") for run in ("rl", "opd")]
    teacher = Level(name="teacher", y=summary["teacher"]["accuracy"])
    return (
        '<div class="row wide"><div class="card"><h3>Reverse KL to the teacher, nats per token</h3>'
        + line_chart(kl, x_label="step", y_label="reverse KL")
        + '</div><div class="card"><h3>Accuracy on held-out problems, with 95% intervals</h3>'
        + line_chart(accuracy, x_label="step", y_label="accuracy", as_percent=True, levels=[teacher])
        + "</div></div>"
    )


def _series(rows: Sequence[Mapping[str, Any]], run: str, key: str, band: str | None = None) -> Series:
    measured = [row for row in rows if row["run"] == run and row.get(key) is not None]
    return Series(
        name=run.upper(),
        colour=f"--{run}",
        points=[(row["step"], row[key]) for row in measured],
        band=[tuple(row[band]) for row in measured] if band else (),
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = (
        "<tr><th>step</th><th>RL: KL</th><th>RL: accuracy</th><th>RL: tokens/s</th>"
        "<th>OPD: KL</th><th>OPD: accuracy</th><th>OPD: tokens/s</th></tr>"
    )
    by_run = {run: {row["step"]: row for row in rows if row["run"] == run} for run in ("rl", "opd")}
    steps = sorted(s for s in by_run["rl"].keys() | by_run["opd"].keys() if _evaluated(by_run, s))
    body = "".join(
        f"<tr><td>{step}</td>{_cells(by_run['rl'].get(step, {}))}{_cells(by_run['opd'].get(step, {}))}</tr>"
        for step in steps
    )
    return f'<div class="card scroll"><table>{head}{body}</table></div>'


def _evaluated(by_run: Mapping[str, Mapping[int, Mapping[str, Any]]], step: int) -> bool:
    return any(rows.get(step, {}).get("accuracy") is not None for rows in by_run.values())


def _cells(row: Mapping[str, Any]) -> str:
    kl = "" if row.get("reverse_kl") is None else f"{row['reverse_kl']:.3f}"
    accuracy = ""
    if row.get("accuracy") is not None:
        low, high = row["accuracy_interval"]
        accuracy = f'{row["accuracy"]:.1%} <span class="soft">[{100 * low:.0f}, {100 * high:.0f}]</span>'
    speed = "" if row.get("tokens_per_second") is None else f"{row['tokens_per_second']:.0f}"
    return f"<td>{kl}</td><td>{accuracy}</td><td>{speed}</td>"


def _shaded(rollouts: Sequence[Mapping[str, Any]]) -> str:
    questions = list(dict.fromkeys(rollout["question"] for rollout in rollouts))
    shown = [m for m in MODELS if any(rollout["model"] == m for rollout in rollouts)]
    head = "<tr><th>question</th>" + "".join(f"<th>{_NAMES[model]}</th>" for model in shown) + "</tr>"
    body = "".join(
        f"<tr><td>{escape(question)}</td>"
        + "".join(f"<td>{_replies(rollouts, question, model)}</td>" for model in shown)
        + "</tr>"
        for question in questions
    )
    return (
        "<h2>Where the teacher objects</h2>"
        "<p>One completion by each model, every token shaded by log p(student) &minus; log p(teacher): "
        'the teacher likes it more<span class="legend"></span>the teacher would not say this. '
        "Hover over a token for its numbers. In a wrong reply, look at the token that set its course: what "
        "follows is often what the teacher, too, would say by then.</p>"
        f'<div class="card"><table class="rollouts">{head}{body}</table></div>'
    )


def _replies(rollouts: Sequence[Mapping[str, Any]], question: str, model: str) -> str:
    matching = [r for r in rollouts if r["question"] == question and r["model"] == model]
    return "".join(
        f'<div class="tokens">{shaded_tokens(r["tokens"])}'
        f' <span class="mark">{"✓" if r["correct"] else "✗"}</span></div>'
        for r in matching
    )


def shaded_tokens(tokens: Sequence[Mapping[str, Any]]) -> str:
    """Spans for tokens with keys `text`, `student` and `teacher` (logprobs, nats)."""
    return "".join(_token(t["text"], t["student"], t["teacher"]) for t in tokens)


def _token(text: str, student: float, teacher: float) -> str:
    kl = student - teacher
    tint = "--objects" if kl > 0 else "--agrees"
    strength = 0.75 * min(abs(kl) / KL_SHOWN, 1.0)
    kind = "token special" if text.startswith("<|") else "token"
    tip = f"KL {kl:+.2f} nats\nstudent p {exp(student):.3g}\nteacher p {exp(teacher):.3g}"
    return (
        f'<span class="{kind}" tabindex="0" data-tip="{escape(tip)}" '
        f'style="--tint:var({tint});--strength:{strength:.2f}">{escape(_visible(text))}</span>'
    )


def _visible(text: str) -> str:
    """Blanks that would vanish at the edge of a span, made visible."""
    return text.replace("\n", "↵").replace(" ", "\u00a0") or "∅"


def _settings(summary: Mapping[str, Any]) -> str:
    settings = json.dumps({"command": summary["command"], **summary["config"]}, indent=2)
    return (
        "<h2>Settings</h2><details><summary>Everything this run was made with</summary>"
        f"<pre>{escape(settings)}</pre></details>"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m cookbook.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--out", type=Path, help="file to write [comparison.html beside the first run]")
    given = parser.parse_args(argv)
    first: Path = given.runs[0]
    if len(given.runs) == 1 and (first / "summary.json").exists():
        print(write_report(first))
    else:
        print(write_comparison(given.runs, given.out or first.parent / "comparison.html"))


if __name__ == "__main__":
    main()
