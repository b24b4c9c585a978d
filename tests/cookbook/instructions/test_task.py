"""Problems with instructions: what they are graded by."""

import pytest

from cookbook.instructions.case import Lowercase, NoCommas
from cookbook.instructions.task import InstructedProblem, grade_instructions, instructions_of
from cookbook.renderers import Message
from cookbook.rollouts import Problem

MESSAGE = Message(role="user", content="Hi")


def test_reward_is_the_share_followed_and_correct_means_all():
    problem = InstructedProblem(messages=(MESSAGE,), answer="", instructions=(Lowercase(), NoCommas()))
    grade = grade_instructions(problem, "lower, case")
    assert (grade.reward, grade.correct) == (0.5, False)
    grade = grade_instructions(problem, "lower case")
    assert (grade.reward, grade.correct) == (1.0, True)


def test_who_is_asked_for_no_form_has_it():
    plain = InstructedProblem(messages=(MESSAGE,), answer="", instructions=())
    assert grade_instructions(plain, "").correct


def test_a_problem_of_another_task_is_refused():
    with pytest.raises(TypeError, match="another task"):
        instructions_of(Problem(messages=(MESSAGE,), answer="4"))
