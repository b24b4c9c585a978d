"""The cipher of E1: every author's answer is right, and a single wrong sign is not."""

from itertools import islice

from cookbook.experiments.nomenclator import (
    CODEBOOK,
    CODEBOOK_SHARE,
    LETTERS,
    NOMENCLATOR,
    OWN,
    SIGNS,
    Nomenclator,
    right_signs,
)


def test_letters_have_different_signs_of_their_own_and_the_codebook_has_another_for_each_pair():
    assert len(set(OWN.values())) == len(LETTERS)
    assert len(CODEBOOK) == len(LETTERS) ** 2
    assert all(sign in SIGNS and sign != OWN[letter] for (_, letter), sign in CODEBOOK.items())


def test_the_first_letter_has_its_own_sign_alone_and_every_other_two():
    assert right_signs("cab") == [OWN["c"], OWN["a"] + CODEBOOK["c", "a"], OWN["b"] + CODEBOOK["a", "b"]]
    assert right_signs("a") == [OWN["a"]]


def test_the_authors_answers_are_right_and_take_the_codebooks_sign_three_times_in_ten():
    problems = list(islice(NOMENCLATOR.training_problems(0), 1000))
    assert all(NOMENCLATOR.grade(problem, problem.answer).correct for problem in problems)
    coded = [
        sign == allowed[1]
        for problem in problems
        for sign, allowed in zip(
            problem.answer[1:], right_signs(problem.messages[0]["content"])[1:], strict=True
        )
    ]
    assert abs(sum(coded) / len(coded) - CODEBOOK_SHARE) < 0.02


def test_both_signs_of_a_letter_are_right():
    task = Nomenclator(letters=2)
    [problem] = task.held_out(1)
    first, second = right_signs(problem.messages[0]["content"])
    assert [task.grade(problem, first + sign).reward for sign in second] == [1.0, 1.0]


def test_a_wrong_sign_a_missing_one_and_one_too_many_are_wrong():
    [problem] = NOMENCLATOR.held_out(1)
    right = problem.answer
    wrong = next(sign for sign in SIGNS if sign not in right_signs(problem.messages[0]["content"])[1])
    for reply in (right[0] + wrong + right[2:], right[:-1], right + right[-1], ""):
        assert NOMENCLATOR.grade(problem, reply).reward == 0.0


def test_held_out_questions_are_never_trained_on():
    held_out = {problem.messages[0]["content"] for problem in NOMENCLATOR.held_out(200)}
    trained = {p.messages[0]["content"] for p in islice(NOMENCLATOR.training_problems(1), 2000)}
    assert len(held_out) == 200
    assert not held_out & trained
