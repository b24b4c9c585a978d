"""A homophonic cipher: a small task with long answers and a free choice at every step.

    question    bad           each letter has three signs, and the author takes any of them
    one answer  %!+           here: b is one of $ % &, a one of ! " #, d one of * + ,

A reply is right if every sign stands for its letter. So there are 3^n right answers to n letters, most of
what could be copied from another's is chance, and one slip spoils all. It stands in for reasoning, of which
the same is true, in a size that a model of some hundred thousand parameters learns from scratch in a minute.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random

from cookbook.renderers import Message
from cookbook.rollouts import Grade, Problem
from cookbook.tasks import is_held_out

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIGNS_PER_LETTER = 3
FIRST_SIGN = ord("!")


@dataclass(frozen=True, kw_only=True)
class Homophones:
    """The task. Implements `rollouts.Task`; a problem's answer is one author's."""

    letters: int = 20
    """In a question."""
    name: str = "homophones"

    def training_problems(self, seed: int) -> Iterator[Problem]:
        """An endless stream without the held-out problems, each with one right answer."""
        return self._problems(Random(f"{self.name} train {seed}"), held_out=False)

    def held_out(self, count: int) -> list[Problem]:
        """The first `count` held-out problems, always the same."""
        return list(islice(self._problems(Random(f"{self.name} held out"), held_out=True), count))

    def grade(self, problem: Problem, reply: str) -> Grade:
        """1 if there is one right sign for every letter; 0 otherwise."""
        question = problem.messages[-1]["content"]
        right = len(reply) == len(question) and all(
            sign in signs_of(letter) for letter, sign in zip(question, reply, strict=True)
        )
        return Grade(reward=float(right), correct=right)

    def _problems(self, random: Random, *, held_out: bool) -> Iterator[Problem]:
        while True:
            question = "".join(random.choices(LETTERS, k=self.letters))
            answer = "".join(random.choice(signs_of(letter)) for letter in question)
            if is_held_out(question) == held_out:
                yield Problem(messages=(Message(role="user", content=question),), answer=answer)


def signs_of(letter: str) -> str:
    """The signs of a letter: "!", '"' and "#" for "a", and so on through ASCII."""
    first = FIRST_SIGN + SIGNS_PER_LETTER * LETTERS.index(letter)
    return "".join(map(chr, range(first, first + SIGNS_PER_LETTER)))


HOMOPHONES = Homophones()
