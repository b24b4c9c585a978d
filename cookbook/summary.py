"""Summaries of a demo run: the few figures that matter, and what they mean in words.

From rows alone; knows nothing about models or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from cookbook.metrics import Row
from cookbook.table import accuracy_text, number

MODELS = ("base", "teacher", "rl", "opd")
"""What a demo compares, in the order in which it is shown."""

TARGET_SHARE = 0.9
"""Of the teacher's accuracy, at which a student has caught up."""


def run_figures(rows: Sequence[Row], teacher_accuracy: float) -> dict[str, Any]:
    """An on-policy run in a few numbers: where it ended, how fast, and from which KL to which.

    `kl_first` is the untrained student's, `kl_last` that of the trained one, each on one batch of
    its own rollouts. Tokens per second are completion tokens over the time of all updates.
    """
    measured = [row for row in rows if row.get("reverse_kl") is not None]
    last = [row for row in rows if row.get("accuracy") is not None][-1]
    updates = rows[:-1]
    seconds = sum(sum(row["seconds"].values()) for row in updates)
    return {
        "accuracy": last["accuracy"],
        "accuracy_interval": last["accuracy_interval"],
        "steps": rows[-1]["step"],
        "kl_first": measured[0]["reverse_kl"],
        "kl_last": measured[-1]["reverse_kl"],
        "steps_to_90_percent_of_teacher": steps_to_accuracy(rows, TARGET_SHARE * teacher_accuracy),
        "tokens_per_second": sum(row["completion_tokens"] for row in updates) / seconds,
        "seconds": seconds,
    }


def steps_to_accuracy(rows: Sequence[Row], target: float) -> int | None:
    """The first evaluated step at which accuracy is at least the target; None if there is none."""
    evaluated = (row for row in rows if row.get("accuracy") is not None)
    return next((row["step"] for row in evaluated if row["accuracy"] >= target), None)


def print_comparison(
    summary: Mapping[str, Any], rl: Sequence[Row], opd: Sequence[Row], console: Console
) -> None:
    """The table of the demo: both students side by side at every evaluated step."""
    table = Table(
        box=box.SIMPLE_HEAD, title="Both students on the same held-out problems", title_justify="left"
    )
    for title in ("step", "RL: reverse KL", "accuracy [95%]", "OPD: reverse KL", "accuracy [95%]"):
        table.add_column(title, justify="right", no_wrap=True)
    by_step = [{row["step"]: row for row in rows if row.get("accuracy") is not None} for rows in (rl, opd)]
    for step in sorted(by_step[0].keys() | by_step[1].keys()):
        cells = [
            show(rows.get(step, {})) for rows in by_step for show in (number("reverse_kl", 3), accuracy_text)
        ]
        table.add_row(str(step), *cells)
    table.add_section()
    speeds = [f"{summary[run]['tokens_per_second']:.0f} tokens/s" for run in ("rl", "opd")]
    table.add_row("", "", speeds[0], "", speeds[1])
    console.print(table)
    console.print(f"teacher: accuracy {accuracy_text(summary['teacher'])}\n")


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """What happened, in sentences that claim no more than the figures do."""
    opd, rl = summary["opd"], summary["rl"]
    taught, untaught = summary["teacher"]["accuracy"], summary["base"]["accuracy"]
    if taught <= untaught:
        no_better = f"The teacher answers no better ({taught:.1%}) than the base model ({untaught:.1%})"
        return [f"{no_better}: there was nothing to distil. Give it more steps, or try another seed."]
    target = TARGET_SHARE * summary["teacher"]["accuracy"]
    opd_steps, rl_steps = opd["steps_to_90_percent_of_teacher"], rl["steps_to_90_percent_of_teacher"]
    return [
        f"OPD: {_kl_change(opd)} It {_reached(opd, target)}",
        f"RL: {_kl_change(rl)} It {_reached(rl, target)}",
        _compared(opd_steps, rl_steps),
    ]


def _kl_change(run: Mapping[str, Any]) -> str:
    first, last = run["kl_first"], run["kl_last"]
    share = f" ({last / first - 1:+.0%})" if first > 0 else ""
    return f"the reverse KL to the teacher went from {first:.2f} to {last:.2f} nats per token{share}."


def _reached(run: Mapping[str, Any], target: float) -> str:
    steps, goal = run["steps_to_90_percent_of_teacher"], f"90% of the teacher's accuracy ({target:.1%})"
    if steps is None:
        return f"did not reach {goal} in {run['steps']} steps, and ended at {run['accuracy']:.1%}."
    return f"reached {goal} by step {steps}, and ended at {run['accuracy']:.1%}."


def _compared(opd_steps: int | None, rl_steps: int | None) -> str:
    if opd_steps is None:
        return "OPD did not catch up here: more steps, more rollouts or an easier task would let it."
    if rl_steps is None:
        return (
            "From as many rollouts, a grade for every token taught what one per completion did not; "
            "with more of them, RL may get there too."
        )
    if opd_steps < rl_steps:
        return f"OPD needed {opd_steps} steps where RL needed {rl_steps}."
    if rl_steps < opd_steps:
        return f"RL needed {rl_steps} steps where OPD needed {opd_steps}: its rewards came easily here."
    return "RL was as quick here: where rewards come easily, a teacher adds little."
