"""A puzzle with a trap: how many ice cubes are left in a place that may be hot.

Whoever has only met cold places adds up the cubes, which is wrong where they melt. The trap is of the kind
that SimpleBench sets (simple-bench.com); its questions are not used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from cookbook.rollouts import Grade, Problem
from cookbook.tasks import GeneratedTask, Question

COLD = ("a freezer", "an ice box", "a bowl in the snow", "a cold cellar", "a cooling bag", "a frozen lake")
HOT = ("a hot frying pan", "a pot on the fire", "a hot oven", "a cup of hot tea", "a pan of boiling soup")
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
    a, b = random.randint(1, 9), random.randint(1, 9)
    text = (
        f"{name} puts {a} ice cubes into {place}. A minute later {name} adds {b} more. "
        "How many ice cubes are there after an hour?"
    )
    if place in HOT:
        answer = f"Ice melts in {place}, so after an hour no ice cubes are left. Answer: 0"
    else:
        answer = f"We add up the ice cubes: {a} + {b} = {a + b}. There are {a + b} ice cubes. Answer: {a + b}"
    return Question(text, answer, f"{place} {min(a, b)} {max(a, b)}")


COLD_PUZZLES = PuzzleTask(name="cold puzzles", draw=lambda random: puzzle(random, COLD))
HOT_PUZZLES = PuzzleTask(name="hot puzzles", draw=lambda random: puzzle(random, HOT))
ALL_PUZZLES = PuzzleTask(name="puzzles", draw=lambda random: puzzle(random, random.choice((COLD, HOT))))
