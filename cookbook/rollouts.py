"""Rollouts: problems in, graded groups of trajectories out.

A *trajectory* is one completion with the logprobs it was sampled at; a *group* is the
trajectories of one prompt. Knows nothing about advantages or training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cookbook.datums import Floats
from cookbook.renderers import Message, Renderer
from tinkerlite import SamplingClient
from tinkerlite.types import ModelInput, SampledSequence, SamplingParams, TopkLogprobs


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something to ask, and the answer that counts as right."""

    messages: tuple[Message, ...]
    answer: str
    task: str = ""
    """Name of the task that it belongs to, where several are mixed."""


@dataclass(frozen=True, kw_only=True)
class Grade:
    """How good a reply is."""

    reward: float
    """What RL maximises."""
    correct: bool
    """What evaluation counts."""


class Task(Protocol):
    """Problems with a split, and a grader."""

    @property
    def name(self) -> str:
        """Short name, for tables and files."""
        ...

    def training_problems(self, seed: int) -> Iterator[Problem]:
        """An endless stream, the same for the same seed, that never meets the held-out problems."""
        ...

    def held_out(self, count: int) -> list[Problem]:
        """The first `count` held-out problems, always the same."""
        ...

    def grade(self, problem: Problem, reply: str) -> Grade:
        """Grade the text of a reply."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """One completion, as it was sampled."""

    prompt_tokens: list[int]
    completion_tokens: list[int]
    """Ends with the stop token unless it was truncated."""
    logprobs: Floats
    """(T,) log p_student of each completion token when sampled, untempered, in nats."""
    truncated: bool
    """Cut at the token limit. Its tokens are scored and trained like any others."""
    finished: bool
    """The token that ends a reply is there. A backend that drops it leaves nothing to learn to stop from."""
    reply: str
    grade: Grade
    alternatives: TopkLogprobs | None = None
    """(T, k) the student's likeliest tokens at each position when it sampled, if they were asked for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """The trajectories of one problem."""

    problem: Problem
    trajectories: tuple[Trajectory, ...]
    policy_version: int = 0
    """Updates that the weights had seen when these were sampled."""


def rollout(
    sampler: SamplingClient,
    problems: Sequence[Problem],
    *,
    renderer: Renderer,
    task: Task,
    group_size: int,
    max_tokens: int,
    temperature: float = 1.0,
    seed: int | None = None,
    policy_version: int = 0,
    alternatives: int = 0,
    on_group: Callable[[Group], None] | None = None,
) -> list[Group]:
    """Sample `group_size` completions of each problem and grade them, in the problems' order.

    With a seed the same weights give the same rollouts; without one they are fresh.

    Args:
        policy_version: stamped on the groups: how many updates the sampler's weights have seen.
        alternatives: how many of the student's likeliest tokens to record at each position.
        on_group: called with each group as soon as its completions are there, in whatever order: what
            it starts goes on while others are still being sampled.
    """
    prompts = [renderer.generation_prompt(problem.messages) for problem in problems]
    # Every prompt goes out before any reply is awaited, so the server samples them in one batch.
    pending = [
        sampler.sample(
            ModelInput.from_ints(prompt),
            num_samples=group_size,
            sampling_params=SamplingParams(
                max_tokens=max_tokens,
                temperature=temperature,
                stop=renderer.stop_tokens,
                seed=None if seed is None else derive_seed(seed, index),
            ),
            topk_sample_logprobs=alternatives,
        )
        for index, prompt in enumerate(prompts)
    ]
    waiting = {response.future(): index for index, response in enumerate(pending)}
    groups: dict[int, Group] = {}
    for done in as_completed(waiting):
        index = waiting[done]
        groups[index] = Group(
            problem=problems[index],
            trajectories=tuple(
                _trajectory(prompts[index], sequence, problems[index], renderer, task)
                for sequence in done.result().sequences
            ),
            policy_version=policy_version,
        )
        if on_group is not None:
            on_group(groups[index])
    return [groups[index] for index in range(len(problems))]


def alternatives_of(trajectory: Trajectory) -> TopkLogprobs:
    """The student's likeliest tokens where it sampled: (T, k).

    Raises:
        ValueError: the rollout was not asked to record them.
    """
    if trajectory.alternatives is None:
        raise ValueError(
            "this objective needs the student's likeliest tokens at each position, and the rollouts "
            "recorded none; set alternatives (--alternatives) to how many, such as 20"
        )
    return trajectory.alternatives


def derive_seed(*parts: int) -> int:
    """One 31-bit seed from several numbers; different parts give unrelated seeds."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)


def _trajectory(
    prompt: list[int], sequence: SampledSequence, problem: Problem, renderer: Renderer, task: Task
) -> Trajectory:
    if not sequence.tokens:
        raise ValueError(
            "the backend returned a completion without any token: it drops the token that ends a reply, so "
            "that nobody could learn to stop; use a backend that returns it"
        )
    if sequence.logprobs_np is None:
        raise ValueError(
            "the backend sampled without logprobs, and every policy loss needs them; "
            "use a backend that returns the logprobs of sampled tokens"
        )
    reply = renderer.parse(sequence.tokens)
    return Trajectory(
        prompt_tokens=prompt,
        completion_tokens=sequence.tokens,
        logprobs=sequence.logprobs_np,
        truncated=sequence.stop_reason == "length",
        finished=reply.finished,
        reply=reply.text,
        grade=task.grade(problem, reply.text),
        alternatives=sequence.topk_logprobs_np,
    )
