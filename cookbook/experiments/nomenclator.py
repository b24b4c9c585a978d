"""A nomenclator: a small task with two right ways at every step, one of which takes long to learn.

    question    bad     each letter has a sign of its own, and another in the codebook for its place after
    answers     PFM     each other letter: the author takes that one three times in ten
                PPS

A reply is right if each sign is one or the other. Letters are as unequally frequent as words are, so most of
the codebook is rare, and who learns it from examples learns with the logarithm of their number. Who has not
learned an entry yet, and imitates the author all the same, guesses at it: one slip in twenty signs spoils
the reply. It stands in for reasoning, of which both are true, in a size that a model of some hundred
thousand parameters learns from scratch in minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise, product
from random import Random

from cookbook.renderers import Message
from cookbook.rollouts import Grade, Problem
from cookbook.tasks import is_held_out

LETTERS = "abcdefghijkl"
FREQUENCIES = tuple(1 / rank for rank in range(1, len(LETTERS) + 1))
"""Of the letters, by Zipf's law."""
SIGNS = "ABCDEFGHIJKLMNOPQRSTUVWX"
CODEBOOK_SHARE = 0.3
"""Of the author's signs that have a letter before them."""

_RANDOM = Random("nomenclator")
OWN = dict(zip(LETTERS, _RANDOM.sample(SIGNS, len(LETTERS)), strict=True))
"""The sign of a letter, wherever it stands."""
CODEBOOK = {
    (before, letter): _RANDOM.choice([sign for sign in SIGNS if sign != OWN[letter]])
    for before, letter in product(LETTERS, LETTERS)
}
"""The other sign of a letter, by the letter before it."""


@dataclass(frozen=True, kw_only=True)
class Nomenclator:
    """The task. Implements `rollouts.Task`; a problem's answer is one author's."""

    letters: int = 20
    """In a question."""
    name: str = "nomenclator"

    def training_problems(self, seed: int) -> Iterator[Problem]:
        """An endless stream without the held-out problems, each with one right answer."""
        return self._problems(Random(f"{self.name} train {seed}"), held_out=False)

    def held_out(self, count: int) -> list[Problem]:
        """The first `count` held-out problems, always the same."""
        return list(islice(self._problems(Random(f"{self.name} held out"), held_out=True), count))

    def grade(self, problem: Problem, reply: str) -> Grade:
        """1 if there is one right sign for every letter; 0 otherwise."""
        right = right_signs(problem.messages[-1]["content"])
        correct = len(reply) == len(right) and all(
            sign in allowed for sign, allowed in zip(reply, right, strict=True)
        )
        return Grade(reward=float(correct), correct=correct)

    def _problems(self, random: Random, *, held_out: bool) -> Iterator[Problem]:
        while True:
            question = "".join(random.choices(LETTERS, FREQUENCIES, k=self.letters))
            answer = "".join(
                allowed[-1] if random.random() < CODEBOOK_SHARE else allowed[0]
                for allowed in right_signs(question)
            )
            if is_held_out(question) == held_out:
                yield Problem(messages=(Message(role="user", content=question),), answer=answer)


def right_signs(question: str) -> list[str]:
    """The signs that are right for each letter: its own and, after another letter, the codebook's."""
    own = [OWN[letter] for letter in question]
    coded = [CODEBOOK[pair] for pair in pairwise(question)]
    return own[:1] + [one + other for one, other in zip(own[1:], coded, strict=True)]


NOMENCLATOR = Nomenclator()
