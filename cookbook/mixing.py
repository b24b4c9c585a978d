"""Mixing: several objectives at once, and several teachers, each for its own problems.

Knows nothing about what is mixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TypeVar

from cookbook import work
from cookbook.datums import Floats
from cookbook.objectives import Credit, Objective, TokenWeights, added
from cookbook.rollouts import Grade, Group, Problem, Task
from cookbook.teachers import Teacher
from cookbook.work import Work
from tinkerlite.types import TopkLogprobs

Scores = TypeVar("Scores")


def total(*objectives: Objective) -> Objective:
    """The sum of objectives. For example a reward, with a teacher that keeps the student in its ways:

        total(group_relative, reverse_kl(teacher, kl_coef=0.1))        A = R - mean(R) - 0.1 kl

    Two teachers with a `kl_coef` of 0.5 each are the mean of their logprobs (arXiv:2606.30406). With a
    reward, the size of a coefficient matters; with a KL alone, Adam forgets it.

    Raises:
        ValueError: of nothing.
    """
    if not objectives:
        raise ValueError("total() needs at least one objective")

    def credits(groups: Sequence[Group]) -> list[list[Credit]]:
        each = [objective(groups) for objective in objectives]
        return [
            [
                reduce(lambda a, b, t=trajectory: added(t, a, b), (of_one[g][i] for of_one in each))
                for i, trajectory in enumerate(group.trajectories)
            ]
            for g, group in enumerate(groups)
        ]

    return credits


def scaled(objective: Objective, factor: float) -> Objective:
    """An objective times a number, for those without a coefficient: `scaled(group_relative, 2.0)`."""

    def credits(groups: Sequence[Group]) -> list[list[Credit]]:
        return [[_times(credit, factor) for credit in of_group] for of_group in objective(groups)]

    return credits


class RoutedTeachers:
    """Several teachers, each for its own problems; scores as one of them does.

    Args:
        teachers: by name.
        route: a problem to the name of its teacher. By default a problem's task names it (`mixed`).

    Raises:
        KeyError: from `score` and the others, for a problem whose teacher is not there.
    """

    def __init__(
        self, teachers: Mapping[str, Teacher], route: Callable[[Problem], str] = lambda problem: problem.task
    ) -> None:
        self._teachers = dict(teachers)
        self._all = list(dict.fromkeys(teachers.values()))
        """Each once, though it may have several names."""
        self._route = route

    @property
    def work(self) -> Work:
        """Of all of them."""
        return work.total(teacher.work for teacher in self._all)

    def start(self, group: Group) -> None:
        """See `Teacher.start`."""
        self._teacher_of(group).start(group)

    def score(self, groups: Sequence[Group]) -> list[list[Floats]]:
        """See `Teacher.score`."""
        return self._routed(groups, lambda teacher, own: teacher.score(own))

    def score_alternatives(self, groups: Sequence[Group]) -> list[list[Floats]]:
        """See `Teacher.score_alternatives`."""
        return self._routed(groups, lambda teacher, own: teacher.score_alternatives(own))

    def top_k(self, groups: Sequence[Group], k: int) -> list[list[TopkLogprobs]]:
        """See `Teacher.top_k`."""
        return self._routed(groups, lambda teacher, own: teacher.top_k(own, k))

    def _routed(
        self, groups: Sequence[Group], ask: Callable[[Teacher, Sequence[Group]], list[list[Scores]]]
    ) -> list[list[Scores]]:
        for group in groups:  # so that no teacher waits for the one before it
            self.start(group)
        answers: dict[Group, list[Scores]] = {}
        for teacher in self._all:
            own = [group for group in groups if self._teacher_of(group) is teacher]
            answers |= zip(own, ask(teacher, own), strict=True)
        return [answers[group] for group in groups]

    def _teacher_of(self, group: Group) -> Teacher:
        name = self._route(group.problem)
        if name not in self._teachers:
            raise KeyError(f"no teacher for {name!r}; there are teachers for {sorted(self._teachers)}")
        return self._teachers[name]


@dataclass(frozen=True, kw_only=True)
class MixedTask:
    """Problems of several tasks in turn, each graded by its own. Implements `rollouts.Task`."""

    tasks: Mapping[str, Task]
    """By the name that their problems carry."""

    @property
    def name(self) -> str:
        """The names, joined."""
        return "+".join(self.tasks)

    def training_problems(self, seed: int) -> Iterator[Problem]:
        """One of each in turn."""
        streams = {name: task.training_problems(seed) for name, task in self.tasks.items()}
        while True:
            for name, stream in streams.items():
                problem = next(stream, None)
                if problem is None:
                    return
                yield replace(problem, task=name)

    def held_out(self, count: int) -> list[Problem]:
        """As equal a share of each as the count allows, one of each in turn."""
        shares = [count // len(self.tasks) + (i < count % len(self.tasks)) for i in range(len(self.tasks))]
        of_each = [
            [replace(problem, task=name) for problem in task.held_out(share)] if share else []
            for (name, task), share in zip(self.tasks.items(), shares, strict=True)
        ]
        return [problems[i] for i in range(max(shares)) for problems in of_each if i < len(problems)]

    def grade(self, problem: Problem, reply: str) -> Grade:
        """As the problem's own task grades it."""
        return self.tasks[problem.task].grade(problem, reply)


def _times(credit: Credit, factor: float) -> Credit:
    if isinstance(credit, TokenWeights):
        return TokenWeights(credit.tokens, credit.weights * factor)
    return credit * factor
