"""The answers as a page: `python -m cookbook.experiments.shaded_answer.page` writes answers.html."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cookbook.experiments.experiment import Result
from cookbook.experiments.results import load_results
from cookbook.experiments.shaded_answer.experiment import ANSWER, EXPERIMENT
from cookbook.shading import page

PAGE = Path(__file__).with_name("answers.html")
SHOWN = 4
"""Wrong answers of each seed."""


def answers_page(results: Sequence[Result]) -> str:
    """The first wrong answers of every seed."""
    answers = [
        (f"{row['question']} (seed {result.seed})", row["tokens"])
        for result in results
        for row in [row for row in result.of(ANSWER) if not row["correct"]][:SHOWN]
    ]
    return page(
        "Where the teacher objects",
        "Wrong answers of the student, every token shaded by its penalty: log p of the student minus log p "
        "of the teacher. The first wrong turn is what the teacher would not have written; the number at the "
        "end follows from it.",
        answers,
    )


if __name__ == "__main__":
    PAGE.write_text(answers_page(load_results(EXPERIMENT, "small")), encoding="utf-8")
    print(PAGE)
