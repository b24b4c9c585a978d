"""Exhibits: completions with every token's logprob under student and teacher, ready to be shaded.

A few held-out problems, asked of several models; plain data that goes to a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from cookbook.datums import Floats
from cookbook.renderers import Renderer
from cookbook.rollouts import Problem, Task, Trajectory, rollout
from cookbook.teachers import Teacher
from tinkerlite import SamplingClient


class ExhibitToken(TypedDict):
    """One token; logprobs in nats."""

    text: str
    student: float
    teacher: float


class Exhibit(TypedDict):
    """One completion."""

    model: str
    question: str
    answer: str
    correct: bool
    tokens: list[ExhibitToken]


def exhibit_rollouts(
    samplers: Mapping[str, SamplingClient],
    problems: Sequence[Problem],
    teacher: Teacher,
    *,
    renderer: Renderer,
    task: Task,
    max_tokens: int,
    seed: int = 0,
) -> list[Exhibit]:
    """One sampled completion of each problem by each model, scored by the teacher."""
    exhibits: list[Exhibit] = []
    for model, sampler in samplers.items():
        groups = rollout(
            sampler, problems, renderer=renderer, task=task, group_size=1, max_tokens=max_tokens, seed=seed
        )
        for group, [scores] in zip(groups, teacher.score(groups), strict=True):
            [trajectory] = group.trajectories
            exhibits.append(
                Exhibit(
                    model=model,
                    question=group.problem.messages[-1]["content"],
                    answer=group.problem.answer,
                    correct=trajectory.grade.correct,
                    tokens=_tokens(trajectory, scores, renderer),
                )
            )
    return exhibits


def _tokens(trajectory: Trajectory, scores: Floats, renderer: Renderer) -> list[ExhibitToken]:
    texts = renderer.token_texts(trajectory.completion_tokens)
    return [
        ExhibitToken(text=text, student=float(own), teacher=float(other))
        for text, own, other in zip(texts, trajectory.logprobs, scores, strict=True)
    ]
