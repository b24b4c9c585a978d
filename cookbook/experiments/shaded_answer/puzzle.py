"""A puzzle with a trap: how many ice cubes are left in a place that may be hot.

Whoever has only met cold places adds up the cubes, which is wrong where they melt. Right and wrong answers
begin alike and part three times: at what the place is, at what ice does there, and at how many are left. The
trap is of the kind that SimpleBench sets (simple-bench.com); its questions are not used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from cookbook.rollouts import Grade, Problem
from cookbook.tasks import GeneratedTask, Question

COLD = ("a freezer", "an ice box", "a bowl in the snow", "an igloo", "a cooling bag", "a frozen lake")
HOT = ("a frying pan", "a pot on the fire", "an oven", "a cup of fresh tea", "a pan of boiling soup")
NAMES = ("Ana", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ida", "Jon")


@dataclass(frozen=True, kw_only=True)
class PuzzleTask(GeneratedTask):
    """Puzzles, right if the last number of a reply is the answer's."""

    def grade(self, problem: Problem, reply: str) -> Grade:
        """By the last number alone: the way there does not matter."""
        correct = last_number(reply) is not None and last_number(reply) == last_number(problem.answer)
        return Grade(reward=float(correct), correct=correct)


def last_number(text: str) -> str | None:
    """The last number written in digits."""
    found = re.findall(r"\d+", text)
    return found[-1] if found else None


def puzzle(random: Random, places: tuple[str, ...]) -> Question:
    """A puzzle in one of these places, with its worked answer."""
    name, place = random.choice(NAMES), random.choice(places)
    a, b = random.randint(2, 9), random.randint(2, 9)
    text = f"{name} puts {a} ice cubes into {place}, then {b} more. How many are there after an hour?"
    total = a + b
    if place in HOT:
        kind, then, number = "hot", "melts there, so none are left", 0
    else:
        kind, then, number = "cold", "stays hard there, so all are left", total
    answer = f"{place.capitalize()} is {kind}. {a} and {b} make {total}. Ice {then}. Answer: {number}"
    return Question(text, answer, f"{place} {min(a, b)} {max(a, b)}")


COLD_PUZZLES = PuzzleTask(name="cold puzzles", draw=lambda random: puzzle(random, COLD))
HOT_PUZZLES = PuzzleTask(name="hot puzzles", draw=lambda random: puzzle(random, HOT))
ALL_PUZZLES = PuzzleTask(name="puzzles", draw=lambda random: puzzle(random, random.choice((COLD, HOT))))
