"""Small verifiable tasks: problems made from a seed, answers checked exactly.

The split is a property of the problem itself: a hash of what it asks decides, so no seed and no
count can move a held-out problem into training. Knows nothing about models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from random import Random

from cookbook.renderers import Message
from cookbook.rollouts import Grade, Problem, Task

HELD_OUT_SHARE = 0.25
MOST_REPEATS = 10_000
"""Draws after which nothing new is taken for nothing left."""


@dataclass(frozen=True)
class Question:
    """A question, its answer, and the key that decides its split (equal problems share a key)."""

    text: str
    answer: str
    key: str


RewardFn = Callable[[str, str], float]
"""(answer, reply) to a reward between 0 and 1."""


def exact_match(answer: str, reply: str) -> float:
    """1 if the reply is the answer and nothing else, blanks around it aside; otherwise 0."""
    return float(reply.strip() == answer)


FORMAT_CREDIT = 0.2


def format_credit(answer: str, reply: str) -> float:
    """1 for the answer alone; 0.2 for a reply that at least looks like it; otherwise 0.

    A reply looks like the answer if it is made of the same kinds of characters, such as digits
    alone. It lets RL start from a model that answers in sentences, and says nothing about which
    bare answer is nearer: that, RL has to find by trying.
    """
    if exact_match(answer, reply):
        return 1.0
    return FORMAT_CREDIT if _kinds(reply.strip()) == _kinds(answer) else 0.0


def _kinds(text: str) -> set[str]:
    """Which kinds of characters a text has."""
    kinds = {"digit": str.isdigit, "letter": str.isalpha, "blank": str.isspace}
    return {next((kind for kind, test in kinds.items() if test(c)), "other") for c in text}


@dataclass(frozen=True, kw_only=True)
class GeneratedTask:
    """A task whose problems are drawn at random. Implements `rollouts.Task`."""

    name: str
    draw: Callable[[Random], Question]
    """One question; must have thousands of different keys, a quarter of which is held out."""
    reward: RewardFn = exact_match

    def training_problems(self, seed: int) -> Iterator[Problem]:
        """An endless stream without the held-out problems; repeats are possible.

        Raises:
            ValueError: `draw` has so few different keys that all are held out.
        """
        yield from self._problems(Random(f"{self.name} train {seed}"), held_out=False)
        raise ValueError(f"task {self.name!r} has no training problems: {MOST_REPEATS} draws were held out")

    def held_out(self, count: int) -> list[Problem]:
        """The first `count` held-out problems, all different, whatever the seed of training.

        Raises:
            ValueError: the task has fewer.
        """
        distinct = _without_repeats(self._problems(Random(f"{self.name} held out"), held_out=True))
        problems = list(islice(distinct, count))
        if len(problems) < count:
            raise ValueError(
                f"task {self.name!r} has {len(problems)} held-out problems, not {count}; set held_out to "
                f"{len(problems)} or less"
            )
        return problems

    def grade(self, problem: Problem, reply: str) -> Grade:
        """Reward by the task's reward function; correct means an exact match."""
        return Grade(
            reward=self.reward(problem.answer, reply), correct=exact_match(problem.answer, reply) == 1.0
        )

    def _problems(self, random: Random, *, held_out: bool) -> Iterator[Problem]:
        """Ends when none of this split has come for so long that there is none."""
        in_vain = 0
        while in_vain < MOST_REPEATS:
            question = self.draw(random)
            if is_held_out(question.key) == held_out:
                in_vain = 0
                message = Message(role="user", content=question.text)
                yield Problem(messages=(message,), answer=question.answer)
            else:
                in_vain += 1


def with_format_credit(task: Task) -> Task:
    """The same problems, rewarded by `format_credit`; what counts as correct stays exact.

    A task that has a reward of its own keeps it.
    """
    if isinstance(task, GeneratedTask) and task.reward is exact_match:
        return replace(task, reward=format_credit)
    return task


def is_held_out(key: str) -> bool:
    """Whether the problem with this key belongs to the held-out quarter."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


# fmt: off
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
# fmt: on


def number_in_words(number: int) -> str:
    """English words for 0..9999: 4012 is "four thousand twelve"."""
    if not 0 <= number <= 9999:
        raise ValueError(f"only 0..9999 have words here, not {number}")
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens - 2] + (f" {_ONES[ones]}" if ones else "")
    scale, unit = (1000, "thousand") if number >= 1000 else (100, "hundred")
    head, rest = divmod(number, scale)
    return f"{_ONES[head]} {unit}" + (f" {number_in_words(rest)}" if rest else "")


def _number_words(random: Random) -> Question:
    number = random.randint(100, 9999)
    return Question(f"In digits: {number_in_words(number)}", str(number), str(number))


def _number_lists(random: Random) -> Question:
    numbers = random.sample(range(100, 1000), 6)
    words = ", ".join(map(number_in_words, numbers))
    return Question(f"In digits: {words}", ", ".join(map(str, numbers)), str(sorted(numbers)))


def _largest(count: int) -> Callable[[Random], Question]:
    def draw(random: Random) -> Question:
        numbers = random.sample(range(10, 100), count)
        return Question(f"Largest of {' '.join(map(str, numbers))}", str(max(numbers)), str(sorted(numbers)))

    return draw


def _sums(random: Random) -> Question:
    a, b = random.randint(10, 99), random.randint(10, 99)
    return Question(f"{a} + {b} =", str(a + b), f"{min(a, b)}+{max(a, b)}")


def _sort_letters(random: Random) -> Question:
    letters = random.sample("abcdefghijklmnopqrstuvwxyz", 4)
    ordered = " ".join(sorted(letters))
    return Question(f"Sort: {' '.join(letters)}", ordered, ordered)


TASKS: dict[str, GeneratedTask] = {
    task.name: task
    for task in (
        GeneratedTask(name="number-words", draw=_number_words),
        GeneratedTask(name="number-lists", draw=_number_lists),
        GeneratedTask(name="larger", draw=_largest(2)),
        GeneratedTask(name="largest", draw=_largest(4)),
        GeneratedTask(name="sums", draw=_sums),
        GeneratedTask(name="sort-letters", draw=_sort_letters),
    )
}
"""Tasks by the names that recipes' `--task` takes."""


def _without_repeats(problems: Iterator[Problem]) -> Iterator[Problem]:
    """Each problem once; ends when nothing new has come for so long that there is nothing new."""
    seen: set[str] = set()
    repeats = 0
    for problem in problems:
        text = problem.messages[-1]["content"]
        if text in seen:
            repeats += 1
            if repeats > MOST_REPEATS:
                return
        else:
            repeats = 0
            seen.add(text)
            yield problem
