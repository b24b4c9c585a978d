import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cookbook.charts import Level, Series, line_chart, ticks
from cookbook.report import report_page, shaded_tokens, write_report

NASTY = '<script>alert("1")</script> & \' <|im_end|>'


def make_summary() -> dict[str, Any]:
    evaluated = {"accuracy": 0.5, "accuracy_interval": [0.4, 0.6]}
    run = evaluated | {
        "steps": 2,
        "kl_first": 3.0,
        "kl_last": 0.3,
        "steps_to_90_percent_of_teacher": 2,
        "tokens_per_second": 50.0,
    }
    return {
        "command": "python -m cookbook.demo",
        "model": NASTY,
        "task": "sums",
        "rollouts": 64,
        "hardware": "2 cores",
        "seconds": 120.0,
        "base": evaluated,
        "teacher": evaluated,
        "rl": run,
        "opd": run,
        "config": {"note": NASTY},
    }


def make_rows() -> list[dict[str, Any]]:
    return [
        {
            "run": run,
            "step": step,
            "reverse_kl": 3.0 - step,
            "tokens_per_second": 50.0,
            "accuracy": None if step == 1 else 0.1 * step,
            "accuracy_interval": None if step == 1 else [0.0, 0.3],
        }
        for run in ("rl", "opd")
        for step in range(3)
    ]


def make_rollouts() -> list[dict[str, Any]]:
    tokens = [
        {"text": NASTY, "student": -0.5, "teacher": -4.0},
        {"text": " 4\n", "student": -1.0, "teacher": -0.5},
    ]
    return [
        {"model": model, "question": NASTY, "answer": "4", "correct": model == "opd", "tokens": tokens}
        for model in ("base", "rl", "opd")
    ]


class Balance(HTMLParser):
    """Checks that every element that is opened is closed, in order."""

    VOID = frozenset({"meta", "br", "line", "circle", "polygon", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_text_from_models_and_tasks_cannot_become_markup():
    page = report_page(make_summary(), make_rows(), make_rollouts())
    assert "<script" not in page
    assert "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; &#x27; &lt;|im_end|&gt;" in page


def test_the_page_is_balanced_and_needs_nothing_from_elsewhere():
    page = report_page(make_summary(), make_rows(), make_rollouts())
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert not re.search(r"(src|href)=|url\(|@import|https?://", page)


def test_a_token_is_shaded_by_how_much_the_teacher_objects():
    html = shaded_tokens([{"text": "a", "student": -1.0, "teacher": -4.0}])
    # KL 3 of the 6 nats at which the shade is full: 0.75 * 3 / 6.
    assert "--tint:var(--objects);--strength:0.38" in html
    assert "KL +3.00 nats\nstudent p 0.368\nteacher p 0.0183" in html


def test_a_token_that_the_teacher_likes_more_has_the_other_tint():
    html = shaded_tokens([{"text": "a", "student": -4.0, "teacher": -1.0}])
    assert "--tint:var(--agrees)" in html


def test_blanks_stay_visible():
    html = shaded_tokens([{"text": " 4\n", "student": -1.0, "teacher": -1.0}])
    assert ">\u00a04↵</span>" in html


def test_the_report_is_made_from_the_files_of_a_run(tmp_path: Path):
    (tmp_path / "summary.json").write_text(json.dumps(make_summary()))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows()))
    (tmp_path / "rollouts.json").write_text(json.dumps(make_rollouts()))
    page = write_report(tmp_path).read_text()
    assert page.count("<svg") == 2
    assert page.count('class="token"') == 6
    assert "<td>2</td>" in page
    assert "<td>1</td>" not in page  # that step was not evaluated


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 20, [0, 5, 10, 15, 20]),
        (0, 3.9, [0, 1, 2, 3, 4]),
        (0, 0.7, [0, 0.2, 0.4, 0.6, 0.8]),
        (-0.1, 0.4, [-0.1, 0.0, 0.1, 0.2, 0.3, 0.4]),
        (3, 3, [3, 4]),
    ],
)
def test_ticks_are_round_numbers_around_the_data(low: float, high: float, expected: list[float]):
    assert ticks(low, high) == pytest.approx(expected)


def test_a_chart_draws_points_bands_and_levels():
    series = Series(name="OPD", colour="--opd", points=[(0, 0.0), (5, 1.0)], band=[(0.0, 0.1), (0.9, 1.0)])
    level = Level(name="teacher", y=0.9)
    svg = line_chart([series], x_label="step", y_label="accuracy", as_percent=True, levels=[level])
    assert svg.count("<circle") == 2
    assert svg.count("<polygon") == 1
    assert "OPD, step 5: 100.0%" in svg
    assert ">teacher</text>" in svg


def test_a_chart_of_one_point_is_drawn_and_of_none_is_not():
    one = Series(name="a", colour="--rl", points=[(0, 1.0)])
    assert "<circle" in line_chart([one], x_label="step", y_label="KL")
    with pytest.raises(ValueError, match="at least one point"):
        line_chart([], x_label="step", y_label="KL")
