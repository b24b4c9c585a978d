"""A task of generated prompts that ask for something and for the form of the reply.

    Tell me something about rivers. Use only lowercase letters.

A prompt's topic decides its split, so held-out prompts are about other things than the training
prompts. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from random import Random

from cookbook.instructions.instruction import Instruction
from cookbook.instructions.kinds import Kind
from cookbook.instructions.scores import follows
from cookbook.instructions.topics import TOPICS, request
from cookbook.renderers import Message
from cookbook.rollouts import Grade, Problem
from cookbook.tasks import is_held_out

REDRAWS = 1000
"""Repeats in a row after which there are no other prompts."""


@dataclass(frozen=True, kw_only=True)
class InstructedProblem(Problem):
    """A prompt and what it asks of the reply's form. It has no right answer, so `answer` is empty."""

    instructions: tuple[Instruction, ...]


@dataclass(frozen=True, kw_only=True)
class InstructionTask:
    """Prompts with instructions of some kinds. Implements `rollouts.Task`."""

    kinds: tuple[Kind, ...]
    """What is asked for, in turn, so that each kind comes up equally often."""
    second_share: float = 0.0
    """Share of prompts with a second instruction, of a kind that goes with the first."""
    plain_share: float = 0.0
    """Share of *training* prompts that ask nothing of the form, as most of chat does not."""
    name: str = "instructions"

    def training_problems(self, seed: int) -> Iterator[InstructedProblem]:
        """An endless stream without held-out topics."""
        random = Random(f"{self.name} train {seed}")
        kinds = cycle(random.sample(self.kinds, len(self.kinds)))
        topics = [topic for topic in TOPICS if not is_held_out(topic)]
        while True:
            topic = random.choice(topics)
            if random.random() < self.plain_share:
                yield _problem(request(random, topic), ())
            else:
                yield self._draw(random, topic, next(kinds))

    def held_out(self, count: int) -> list[Problem]:
        """The first `count` held-out prompts, all different, of every kind equally many.

        Raises:
            ValueError: there are fewer of some kind.
        """
        random = Random(f"{self.name} held out")
        topics = [topic for topic in TOPICS if is_held_out(topic)]
        seen: set[str] = set()

        def fresh(kind: Kind) -> InstructedProblem:
            for _ in range(REDRAWS):
                problem = self._draw(random, random.choice(topics), kind)
                if problem.messages[-1]["content"] not in seen:
                    seen.add(problem.messages[-1]["content"])
                    return problem
            raise ValueError(
                f"there are about {len(seen)} different held-out prompts of {len(self.kinds)} kinds, not "
                f"{count}; ask for fewer, or for more kinds"
            )

        return [fresh(kind) for kind in islice(cycle(self.kinds), count)]

    def grade(self, problem: Problem, reply: str) -> Grade:
        """Reward: share of instructions followed, 1 if none was given; correct: all of them, strictly."""
        asked = instructions_of(problem)
        followed = [follows(instruction, reply) for instruction in asked]
        return Grade(reward=sum(followed) / len(followed) if followed else 1.0, correct=all(followed))

    def _draw(self, random: Random, topic: str, kind: Kind) -> InstructedProblem:
        asked = [kind]
        others = [other for other in self.kinds if not other.touches & kind.touches]
        if others and random.random() < self.second_share:
            asked.append(random.choice(others))
        text = request(random, topic)
        parts = [each.draw(random, text) for each in asked]
        return _problem(" ".join([text, *(wording for wording, _ in parts)]), [i for _, i in parts])


def instructions_of(problem: Problem) -> tuple[Instruction, ...]:
    """What a problem asks of its reply's form.

    Raises:
        TypeError: it is a problem of another task.
    """
    if not isinstance(problem, InstructedProblem):
        raise TypeError(f"{problem!r} has no instructions; it is a problem of another task")
    return problem.instructions


def _problem(text: str, instructions: Sequence[Instruction]) -> InstructedProblem:
    message = Message(role="user", content=text)
    return InstructedProblem(messages=(message,), answer="", instructions=tuple(instructions))
