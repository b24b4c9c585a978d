"""Problems that ask for the form of a reply, and their grade. Knows nothing about models."""

from __future__ import annotations

from dataclasses import dataclass

from cookbook.instructions.instruction import Instruction
from cookbook.instructions.scores import follows
from cookbook.rollouts import Grade, Problem


@dataclass(frozen=True, kw_only=True)
class InstructedProblem(Problem):
    """A prompt and what it asks of the reply's form. It has no right answer, so `answer` is empty."""

    instructions: tuple[Instruction, ...]


def instructions_of(problem: Problem) -> tuple[Instruction, ...]:
    """What a problem asks of its reply's form.

    Raises:
        TypeError: it is a problem of another task.
    """
    if not isinstance(problem, InstructedProblem):
        raise TypeError(f"{problem!r} has no instructions; it is a problem of another task")
    return problem.instructions


def grade_instructions(problem: Problem, reply: str) -> Grade:
    """Reward: share of instructions followed, 1 if none was given; correct: all of them, strictly."""
    followed = [follows(instruction, reply) for instruction in instructions_of(problem)]
    return Grade(reward=sum(followed) / len(followed) if followed else 1.0, correct=all(followed))
