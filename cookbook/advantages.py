"""Advantages: how much better each sampled token was than expected.

RL and on-policy distillation differ here and nowhere else. An advantage function takes groups of
trajectories and gives one float per completion token. Knows nothing about prompts, renderers or
the server.

Nothing here divides by a standard deviation. For RL it would blow up groups that are nearly all
right or all wrong (Liu et al. 2025, arXiv:2503.20783); for a KL it would turn "the teacher agrees
everywhere" into noise of size one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from cookbook.datums import Floats
from cookbook.rollouts import Group

AdvantageFn = Callable[[Sequence[Group]], list[list[Floats]]]
"""Groups to one (T,) float32 array per trajectory, in the groups' order."""


class Scorer(Protocol):
    """Says how likely it finds each token of a completion; `teachers.Teacher` is one."""

    def score(self, groups: Sequence[Group]) -> list[list[Floats]]:
        """log p of each completion token, in nats: one (T,) array per trajectory."""
        ...


def group_relative(groups: Sequence[Group]) -> list[list[Floats]]:
    """Reinforcement learning: the reward, centred on the mean of its group, on every token.

        A_t = R - mean(R of the group)

    A group whose rewards are all equal teaches nothing: its advantages are zero.

    Raises:
        ValueError: a group of one, which is its own mean.

    Source: Shao et al. 2024 (arXiv:2402.03300), without the division by the standard deviation.
    """
    advantages: list[list[Floats]] = []
    for group in groups:
        if len(group.trajectories) < 2:
            raise ValueError(
                "group_relative compares completions of one prompt, and a group has only one; "
                "set group_size to 2 or more"
            )
        mean = sum(t.grade.reward for t in group.trajectories) / len(group.trajectories)
        advantages.append(
            [
                np.full(len(t.completion_tokens), t.grade.reward - mean, dtype=np.float32)
                for t in group.trajectories
            ]
        )
    return advantages


def reverse_kl(
    teacher: Scorer, *, kl_coef: float = 1.0, discount: float = 0.0, clip: float | None = None
) -> AdvantageFn:
    """On-policy distillation: a teacher grades every token that the student sampled.

        kl_t = log p_student(x_t | x_<t) - log p_teacher(x_t | x_<t)        x ~ student
        A_t  = - kl_coef * sum_{s >= t} discount^(s - t) * kl_s

    Its mean over the student's own samples is KL(student || teacher): zero where they agree,
    whatever the rewards are. Needs no reward, no finished completion and no group.

    Args:
        teacher: scores the completions; all groups at once.
        kl_coef: scale of the advantages. Adam forgets it unless rewards are mixed in.
        discount: 0 makes a token answer for itself only; towards 1 it answers for what follows too.
        clip: largest |kl_t| that counts, in nats. One token that the teacher finds absurd
            otherwise outweighs a batch of small corrections. None: no limit.

    Source: Lu et al. 2025, On-Policy Distillation (doi 10.64434/tml.20251026).
    """

    def advantages(groups: Sequence[Group]) -> list[list[Floats]]:
        return [
            [_credit(-kl_coef * _clipped(kl, clip), discount) for kl in of_group]
            for of_group in kl_per_token(groups, teacher.score(groups))
        ]

    return advantages


def kl_per_token(groups: Sequence[Group], teacher_logprobs: list[list[Floats]]) -> list[list[Floats]]:
    """kl_t = log p_student - log p_teacher of each sampled token, in nats; its mean is the reverse KL."""
    return [
        [t.logprobs - scores for t, scores in zip(group.trajectories, of_group, strict=True)]
        for group, of_group in zip(groups, teacher_logprobs, strict=True)
    ]


def _clipped(kl: Floats, clip: float | None) -> Floats:
    return kl if clip is None else np.clip(kl, -clip, clip)


def _credit(per_token: Floats, discount: float) -> Floats:
    """Discounted sums to the end: c_t = x_t + discount * c_{t+1}."""
    if discount == 0.0:
        return per_token.astype(np.float32)
    credit = np.zeros(len(per_token) + 1, dtype=np.float64)
    for t in reversed(range(len(per_token))):
        credit[t] = per_token[t] + discount * credit[t + 1]
    return credit[:-1].astype(np.float32)
