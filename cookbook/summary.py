"""Summaries of a demo run: the few figures that matter, and what they mean in words.

From rows alone; knows nothing about models or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cookbook.metrics import Row

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
    return next((row["step"] for row in rows if (row.get("accuracy") or -1.0) >= target), None)


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """What happened, in sentences that claim no more than the figures do."""
    opd, rl = summary["opd"], summary["rl"]
    target = TARGET_SHARE * summary["teacher"]["accuracy"]
    fallen = 1 - opd["kl_last"] / opd["kl_first"]
    opd_steps, rl_steps = opd["steps_to_90_percent_of_teacher"], rl["steps_to_90_percent_of_teacher"]
    return [
        f"OPD: the reverse KL to the teacher went from {opd['kl_first']:.2f} to {opd['kl_last']:.2f} nats "
        f"per token ({fallen:+.0%} less) in {opd['steps']} steps. {_reached('It', opd_steps, target, opd['steps'])}",
        f"RL: {_reached('it', rl_steps, target, rl['steps'])} It ended at {rl['accuracy']:.1%}, OPD at {opd['accuracy']:.1%}.",
        _compared(opd_steps, rl_steps),
    ]


def _reached(subject: str, steps: int | None, target: float, of: int) -> str:
    if steps is None:
        return f"{subject} did not reach 90% of the teacher's accuracy ({target:.1%}) in {of} steps."
    return f"{subject} reached 90% of the teacher's accuracy ({target:.1%}) by step {steps}."


def _compared(opd_steps: int | None, rl_steps: int | None) -> str:
    if opd_steps is None:
        return "OPD did not catch up with the teacher here: more steps or rollouts, or an easier task, would show it."
    if rl_steps is None:
        return "With the same rollouts, one number per token taught what one number per completion did not."
    if opd_steps < rl_steps:
        return f"OPD needed {opd_steps} steps where RL needed {rl_steps}."
    return "RL was as quick here: where rewards come easily, a teacher adds little."
