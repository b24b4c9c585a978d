"""The cipher of E1: every author's answer is right, and a single wrong sign is not."""

from itertools import islice

from cookbook.experiments.homophones import HOMOPHONES, LETTERS, Homophones, signs_of


def test_every_letter_has_three_signs_of_its_own():
    signs = "".join(map(signs_of, LETTERS))
    assert (signs_of("a"), signs_of("b"), signs_of("d")) == ('!"#', "$%&", "*+,")
    assert len(set(signs)) == 3 * 26
    assert signs.isprintable()


def test_the_authors_answers_are_right_and_differ_where_questions_do_not():
    task = Homophones(letters=2)
    problems = list(islice(task.training_problems(0), 4000))
    assert all(task.grade(problem, problem.answer).correct for problem in problems)
    answers = {problem.answer for problem in problems if problem.messages[0]["content"] == "qx"}
    assert len(answers) > 1


def test_a_wrong_sign_a_missing_one_and_one_too_many_are_wrong():
    [problem] = HOMOPHONES.held_out(1)
    right = problem.answer
    other = "!" if right[0] not in signs_of("a") else "~"
    for reply in (other + right[1:], right[:-1], right + "!", ""):
        assert HOMOPHONES.grade(problem, reply).reward == 0.0


def test_held_out_questions_are_never_trained_on():
    held_out = {problem.messages[0]["content"] for problem in HOMOPHONES.held_out(200)}
    trained = {p.messages[0]["content"] for p in islice(HOMOPHONES.training_problems(1), 2000)}
    assert len(held_out) == 200
    assert not held_out & trained
