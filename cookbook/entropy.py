"""Entropy: other lessons where one of the two is unsure.

Where the teacher is unsure, several continuations are right, and a reverse KL, which seeks one mode,
teaches the student to give the others up. Where the student is sure, there is little left to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from cookbook.advantages import Scorer, reverse_kl
from cookbook.datums import Floats
from cookbook.objectives import Credit, Objective, TokenWeights, added
from cookbook.rollouts import Group, Trajectory, alternatives_of
from cookbook.top_k import Doubles, tail_of
from tinkerlite.types import TopkLogprobs


class TopKScorer(Scorer, Protocol):
    """Says what it would have written itself; `teachers.Teacher` is one."""

    def top_k(self, groups: Sequence[Group], k: int) -> list[list[TopkLogprobs]]:
        """The k likeliest tokens at each position: (T, k) per trajectory."""
        ...


def entropy_aware(
    teacher: TopKScorer,
    *,
    k: int = 16,
    unsure_above: float = 0.7,
    coef: float = 1.0,
    clip: float | None = None,
) -> Objective:
    """Reverse KL everywhere, and forward KL as well where the teacher is unsure.

        A_t   = log T - log s of the sampled token                  as in `reverse_kl`
        w_tv  = coef * T_v  for the teacher's k likeliest tokens    where its entropy is above a bound

    The forward KL pulls the student to all that the teacher might write, sampled or not. It is cut off at
    the teacher's k tokens, and lowest where the student has T divided by the mass of the k: take k large
    enough to hold nearly all of it. The teacher makes a second pass for them.

    Args:
        teacher: scores the samples, and says what it would have written.
        k: how many of the teacher's tokens to learn from.
        unsure_above: entropy of the teacher, in nats; ln 2 = 0.69 is that of two equal options. It is
            that of the k tokens and the rest as one, so never more than the true one.
        coef: weight of the forward KL.
        clip: of the reverse KL, as in `reverse_kl`.

    Source: arXiv:2603.07079.
    """
    from_samples = reverse_kl(teacher, clip=clip)

    def credits(groups: Sequence[Group]) -> list[list[Credit]]:
        return [
            [
                added(trajectory, advantages, _forward_kl(trajectory, topk, unsure_above, coef))
                for trajectory, advantages, topk in zip(group.trajectories, of_group, tops, strict=True)
            ]
            for group, of_group, tops in zip(
                groups, from_samples(groups), teacher.top_k(groups, k), strict=True
            )
        ]

    return credits


def where_student_is_unsure(objective: Objective, *, share: float = 0.5) -> Objective:
    """Any objective, on that share of a batch's tokens at which the student's entropy is highest.

    Entropies are of the recorded alternatives and the rest as one. They are settled before a token is
    drawn, so what remains of the gradient is unbiased; ties at the bound are all kept.

    Raises:
        ValueError: a share outside 0..1, or rollouts without alternatives.

    Source: arXiv:2506.01939; arXiv:2604.14084 for distillation.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it must be above 0 and at most 1")

    def credits(groups: Sequence[Group]) -> list[list[Credit]]:
        entropies = [[entropy(alternatives_of(t)) for t in group.trajectories] for group in groups]
        bound = np.quantile(np.concatenate([e for of_group in entropies for e in of_group]), 1 - share)
        return [
            [_masked(credit, own >= bound) for credit, own in zip(of_group, own_of_group, strict=True)]
            for of_group, own_of_group in zip(objective(groups), entropies, strict=True)
        ]

    return credits


def entropy(topk: TopkLogprobs) -> Doubles:
    """(T,) entropy in nats at each position, when all tokens outside the k count as one."""
    probabilities = np.exp(topk.logprobs.astype(np.float64))  # 0 in unused slots
    tail = tail_of(probabilities)
    return -(probabilities * topk.logprobs).sum(axis=1) - tail * np.log(tail)


def _forward_kl(trajectory: Trajectory, topk: TopkLogprobs, unsure_above: float, coef: float) -> TokenWeights:
    unsure = entropy(topk) > unsure_above
    weights: Floats = np.where(unsure[:, None], coef * np.exp(topk.logprobs), 0.0).astype(np.float32)
    sampled = np.asarray(trajectory.completion_tokens, dtype=np.int64)
    return TokenWeights(
        np.concatenate([sampled[:, None], topk.token_ids.astype(np.int64)], axis=1),
        np.concatenate([np.zeros((len(sampled), 1), dtype=np.float32), weights], axis=1),
    )


def _masked(credit: Credit, keep: np.ndarray) -> Credit:
    if isinstance(credit, TokenWeights):
        return TokenWeights(credit.tokens, np.where(keep[:, None], credit.weights, 0.0).astype(np.float32))
    return np.where(keep, credit, 0.0).astype(np.float32)
