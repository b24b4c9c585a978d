"""E7: the puzzle, and what is made of shaded tokens written by hand."""

from itertools import islice
from typing import Any

import pytest

from cookbook.experiments.experiment import Result
from cookbook.experiments.shaded_answer.experiment import bars, figures_of, objections, tables
from cookbook.experiments.shaded_answer.page import answers_page
from cookbook.experiments.shaded_answer.puzzle import (
    ALL_PUZZLES,
    COLD,
    COLD_PUZZLES,
    HOT,
    HOT_PUZZLES,
    last_number,
)


def token(text: str, nats: float, choice: str | None = None) -> dict[str, Any]:
    """A token that the student found certain."""
    return {"text": text, "student": 0.0, "teacher": -nats, "choice": text if choice is None else choice}


WRONG = [
    token("We", 5.0, "Ice"),
    token(" add", 0.4),
    token(" 4", 0.0, " 6"),
    token("+", 0.0),
    token("5", 0.6, "7"),
    token(":", 0.0, "is"),
    token(" 1", 0.1),
    token("2", 0.2),
]
"""Four tokens diverge; the number at the end has two."""


def test_the_first_divergent_token_the_others_and_the_end_are_told_apart():
    found = objections(WRONG)
    assert found is not None
    assert found.first == 5.0
    assert found.carried == pytest.approx(5.0 / 6.3)
    assert found.later == pytest.approx((0.4, 0.6))
    assert found.penalised == pytest.approx((5.0, 0.4, 0.6, 0.1, 0.2))
    assert found.final == pytest.approx(0.15)


def test_a_first_one_that_is_the_only_one_carries_everything_and_shows_nothing():
    alone = [WRONG[0], token("4", 0.0)]
    found = objections(alone)
    assert found is not None
    assert found.carried is None
    [first, _] = bars([answered((False, alone))] * 3)
    assert first.holds is None
    assert first.measured == "with 3 of 3 seeds nothing else is penalised in any answer"


def test_a_first_one_that_is_hardly_penalised_carries_nothing_of_what_others_are_penalised_for():
    found = objections([token("a", 0.0, "b"), *WRONG[1:]])
    assert found is not None
    assert (found.carried, found.first) == (0.0, 0.0)


def test_an_answer_without_a_number_or_without_objections_says_nothing():
    assert objections([token("We", 5.0, "Ice"), token(" add", 0.0)]) is None
    assert objections([token("We", 0.0), token(" 4", 0.0)]) is None


def answered(*answers: tuple[bool, list[dict[str, Any]]]) -> Result:
    rows = [{"run": "answer", "question": "How <many>?", "correct": c, "tokens": t} for c, t in answers]
    return Result(seed=0, header={"setting": {}}, rows=rows)


def test_only_wrong_answers_count():
    seed = figures_of(answered((False, WRONG), (True, [token("0", 9.0, "1")])))
    assert seed is not None
    assert (seed.wrong, seed.answers, seed.carried) == (1, 2, pytest.approx(5.0 / 6.3))
    assert seed.final < seed.penalised == pytest.approx(0.4)


def test_both_claims_hold_for_a_wrong_turn_at_the_beginning_and_fail_for_one_at_the_end():
    assert [bar.holds for bar in bars([answered((False, WRONG))] * 3)] == [True, True]
    assert [bar.holds for bar in bars([answered((False, WRONG))])] == [None, None]
    turned = [token("a", 0.2, "b"), token("b", 0.2, "c"), token("c", 0.3, "d"), token("9", 8.0, "0")]
    assert [bar.holds for bar in bars([answered((False, turned))] * 3)] == [False, False]


def test_a_seed_without_wrong_answers_is_said_to_have_none():
    result = answered((True, WRONG))
    assert "| 0 | no wrong answer that the teacher objects to |" in tables([result])
    assert [bar.holds for bar in bars([result])] == [None]


def test_the_page_shows_wrong_answers_alone_and_escapes_what_it_shows():
    page = answers_page([answered((False, [token("<b>", 3.0, "x")]), (True, [token("right", 0.0)]))])
    assert "How &lt;many&gt;? (seed 0)" in page
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "right</span>" not in page
    assert "http" not in page.split("<body>")[1]


def test_the_student_never_meets_a_hot_place_and_the_teacher_meets_both():
    def texts(task: Any) -> list[str]:
        return [p.messages[-1]["content"] for p in islice(task.training_problems(0), 80)]

    assert not any(place in text for text in texts(COLD_PUZZLES) for place in HOT)
    assert all(any(place in text for place in HOT) for text in texts(HOT_PUZZLES))
    both = texts(ALL_PUZZLES)
    assert any(place in text for text in both for place in HOT)
    assert any(place in text for text in both for place in COLD)


def test_worked_answers_are_right_and_wrong_numbers_are_wrong():
    for problem in (*HOT_PUZZLES.held_out(20), *COLD_PUZZLES.held_out(20)):
        assert ALL_PUZZLES.grade(problem, problem.answer).correct
        assert not ALL_PUZZLES.grade(problem, "There are 99.").correct
        assert not ALL_PUZZLES.grade(problem, "None at all").correct
    assert all(last_number(problem.answer) == "0" for problem in HOT_PUZZLES.held_out(20))


def test_no_puzzle_about_a_hot_place_is_both_trained_and_held_out():
    trained = {p.messages[-1]["content"] for p in islice(ALL_PUZZLES.training_problems(0), 3000)}
    assert not trained & {p.messages[-1]["content"] for p in HOT_PUZZLES.held_out(64)}
