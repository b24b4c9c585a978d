"""Prompts with instructions: the split, the balance, what they ask and what they check."""

from collections import Counter
from itertools import islice

import pytest

from cookbook.instructions.case import Lowercase, NoCommas
from cookbook.instructions.kinds import KINDS, kinds
from cookbook.instructions.task import InstructedProblem, InstructionTask, instructions_of
from cookbook.instructions.topics import TOPICS
from cookbook.renderers import Message
from cookbook.rollouts import Problem
from cookbook.tasks import is_held_out

TASK = InstructionTask(kinds=tuple(KINDS.values()), second_share=0.5)


def text(problem: Problem) -> str:
    return problem.messages[-1]["content"]


def topic_of(problem: Problem) -> str:
    asked = text(problem).split(". ")[0].split("? ")[0]
    return max((topic for topic in TOPICS if topic in asked), key=len)


def test_at_least_fifteen_kinds_can_be_asked_for():
    assert len(KINDS) >= 15


def test_training_never_meets_a_held_out_topic():
    trained = {topic_of(problem) for problem in islice(TASK.training_problems(0), 500)}
    held_out = {topic_of(problem) for problem in TASK.held_out(200)}
    assert not any(is_held_out(topic) for topic in trained)
    assert all(is_held_out(topic) for topic in held_out)


def test_a_seed_gives_the_same_prompts_again_and_another_seed_others():
    first, again, other = ([text(p) for p in islice(TASK.training_problems(seed), 20)] for seed in (1, 1, 2))
    assert first == again != other


def test_held_out_prompts_are_different_and_of_every_kind_equally_many():
    plain = InstructionTask(kinds=kinds("lowercase", "bullets", "ending"))
    problems = plain.held_out(60)
    assert len({text(problem) for problem in problems}) == 60
    assert problems[:7] == plain.held_out(7)
    assert set(Counter(type(p.instructions[0]).__name__ for p in problems).values()) == {20}


def test_more_held_out_prompts_than_there_are_is_an_error_and_no_endless_search():
    with pytest.raises(
        ValueError, match=r"there are about 15. different held-out prompts of 1 kinds, not 200"
    ):
        InstructionTask(kinds=kinds("quotation")).held_out(200)


def test_two_instructions_of_a_prompt_never_touch_the_same_side_of_the_reply():
    by_wording = {kind.name: kind.touches for kind in KINDS.values()}
    assert by_wording["uppercase"] & by_wording["lowercase"]
    both = InstructionTask(kinds=kinds("lowercase", "uppercase", "bullets"), second_share=1.0)
    for problem in both.held_out(40):
        first, second = problem.instructions
        assert "BulletCount" in (type(first).__name__, type(second).__name__)


def test_some_training_prompts_ask_nothing_of_the_form():
    mixed = InstructionTask(kinds=kinds("lowercase"), plain_share=0.5)
    asked = [len(p.instructions) for p in islice(mixed.training_problems(0), 400)]
    assert 150 < asked.count(0) < 250
    assert all(len(p.instructions) == 1 for p in mixed.held_out(10))


def test_numbers_and_words_of_the_prompt_are_those_of_the_check():
    for problem in InstructionTask(kinds=kinds("keyword", "two-keywords", "opening")).held_out(30):
        [instruction] = problem.instructions
        for value in vars(instruction).values():
            for word in value if isinstance(value, tuple) else (value,):
                assert f'"{word}"' in text(problem)


def test_a_prompt_to_repeat_is_the_request_alone():
    [problem] = InstructionTask(kinds=kinds("repeat")).held_out(1)
    [instruction] = problem.instructions
    request = text(problem).partition(" First repeat")[0]
    assert instruction.is_followed(f"{request} Here it comes.")


def test_reward_is_the_share_followed_and_correct_means_all():
    message = Message(role="user", content="Hi")
    problem = InstructedProblem(messages=(message,), answer="", instructions=(Lowercase(), NoCommas()))
    grade = TASK.grade(problem, "lower, case")
    assert (grade.reward, grade.correct) == (0.5, False)
    grade = TASK.grade(problem, "lower case")
    assert (grade.reward, grade.correct) == (1.0, True)


def test_a_problem_of_another_task_is_refused():
    with pytest.raises(TypeError, match="another task"):
        instructions_of(Problem(messages=(Message(role="user", content="2 + 2"),), answer="4"))


def test_an_unknown_kind_is_answered_with_those_that_exist():
    with pytest.raises(ValueError, match="no instructions of kind haiku; there are lowercase"):
        kinds("lowercase", "haiku")
