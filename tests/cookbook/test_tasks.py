from dataclasses import replace
from itertools import islice
from random import Random

import pytest

from cookbook.mixing import MixedTask
from cookbook.rollouts import Problem
from cookbook.tasks import (
    TASKS,
    GeneratedTask,
    Question,
    exact_match,
    format_credit,
    is_held_out,
    number_in_words,
    with_format_credit,
)

every_task = pytest.mark.parametrize("name", list(TASKS))


def questions(problems: list[Problem]) -> list[str]:
    return [problem.messages[-1]["content"] for problem in problems]


def first(name: str, seed: int, count: int) -> list[Problem]:
    return list(islice(TASKS[name].training_problems(seed), count))


@every_task
def test_training_never_meets_a_held_out_problem(name: str):
    held_out = set(questions(TASKS[name].held_out(300)))
    assert len(held_out) == 300
    for seed in range(3):
        assert held_out.isdisjoint(questions(first(name, seed, 1000)))


@every_task
def test_problems_follow_from_the_seed(name: str):
    assert first(name, 1, 20) == first(name, 1, 20)
    assert first(name, 1, 20) != first(name, 2, 20)


@every_task
def test_more_held_out_problems_begin_with_the_fewer(name: str):
    assert TASKS[name].held_out(250)[:200] == TASKS[name].held_out(200)


@every_task
def test_the_answer_itself_is_correct_and_fully_rewarded(name: str):
    task = with_format_credit(TASKS[name])
    for problem in first(name, 0, 20):
        grade = task.grade(problem, f" {problem.answer}\n")
        assert (grade.reward, grade.correct) == (1.0, True)


def test_a_sum_and_its_mirror_are_on_the_same_side_of_the_split():
    text = questions(TASKS["sums"].held_out(200))
    mirrored = [" ".join([*reversed(t.removesuffix(" =").split(" ")), "="]) for t in text]
    assert text[0] != mirrored[0]
    assert set(mirrored).isdisjoint(questions(first("sums", 0, 3000)))


def test_about_a_quarter_is_held_out():
    share = sum(is_held_out(str(number)) for number in range(10_000)) / 10_000
    assert share == pytest.approx(0.25, abs=0.01)


def test_answers_are_right():
    for problem in first("sums", 0, 50):
        a, _, b, _ = problem.messages[-1]["content"].split()
        assert int(problem.answer) == int(a) + int(b)
    for problem in first("largest", 0, 50):
        numbers = problem.messages[-1]["content"].removeprefix("Largest of ").split()
        assert problem.answer == max(numbers)
    for problem in first("sort-letters", 0, 50):
        letters = problem.messages[-1]["content"].removeprefix("Sort: ").split()
        assert problem.answer.split() == sorted(letters)
    for problem in first("number-words", 0, 50):
        words = problem.messages[-1]["content"].removeprefix("In digits: ")
        assert number_in_words(int(problem.answer)) == words
    for problem in first("number-lists", 0, 50):
        words = problem.messages[-1]["content"].removeprefix("In digits: ").split(", ")
        assert [number_in_words(int(number)) for number in problem.answer.split(", ")] == words


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (99, "ninety nine"),
        (100, "one hundred"),
        (412, "four hundred twelve"),
        (4012, "four thousand twelve"),
        (9999, "nine thousand nine hundred ninety nine"),
    ],
)
def test_numbers_in_words(number: int, words: str):
    assert number_in_words(number) == words


def test_numbers_beyond_the_words_are_refused():
    with pytest.raises(ValueError, match=r"only 0\.\.9999"):
        number_in_words(10_000)


def test_exact_match_ignores_blanks_around_the_answer_and_nothing_else():
    assert exact_match("42", " 42\n") == 1.0
    assert exact_match("42", "42.") == 0.0


def test_a_reward_of_ones_own_is_not_replaced_by_format_credit():
    own = replace(TASKS["sums"], reward=lambda answer, reply: 0.5)
    problem = next(own.training_problems(0))
    assert with_format_credit(own).grade(problem, "7").reward == 0.5
    mixed = MixedTask(tasks={"sums": TASKS["sums"]})
    assert with_format_credit(mixed) is mixed


def test_format_credit_pays_for_looking_like_the_answer_and_not_for_being_near_it():
    assert format_credit("42", "42") == 1.0
    assert format_credit("42", "43") == format_credit("42", "9") == 0.2
    assert format_credit("42", "42.") == 0.0
    assert format_credit("42", "The answer is 42") == 0.0
    assert format_credit("42", "") == 0.0
    assert format_credit("a b c d", "d c b a") == 0.2
    assert format_credit("a b c d", "abcd") == 0.0


def test_a_wrong_answer_of_the_right_form_earns_something_and_is_still_wrong():
    problem = first("sums", 0, 1)[0]
    grade = with_format_credit(TASKS["sums"]).grade(problem, problem.answer + "0")
    assert grade.reward == 0.2
    assert not grade.correct


def test_a_question_is_drawn_from_the_random_numbers_it_is_given():
    assert TASKS["sums"].draw(Random(1)) == TASKS["sums"].draw(Random(1))


def test_asking_for_more_held_out_problems_than_exist_is_an_error_and_not_a_hang():
    few = replace(TASKS["sums"], draw=lambda random: Question(q := str(random.randrange(40)), q, q))
    with pytest.raises(ValueError, match=r"task 'sums' has [0-9]+ held-out problems, not 40"):
        few.held_out(40)


def test_a_task_of_few_questions_says_so_where_a_split_has_none():
    keys = [f"key {number}" for number in range(20)]
    held_out = next(key for key in keys if is_held_out(key))
    trained = next(key for key in keys if not is_held_out(key))

    def always(key: str) -> GeneratedTask:
        return GeneratedTask(name="one", draw=lambda random: Question("What?", "That", key))

    with pytest.raises(ValueError, match="task 'one' has no training problems"):
        next(always(held_out).training_problems(0))
    with pytest.raises(ValueError, match="task 'one' has 0 held-out problems, not 3"):
        always(trained).held_out(3)
    assert len(always(held_out).held_out(1)) == 1
    assert next(always(trained).training_problems(0)).answer == "That"
