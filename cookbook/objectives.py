"""Objectives: what a batch of rollouts asks of the student, as data for one loss of the server.

Most objectives are advantages, one number per sampled token, and go to `importance_sampling`. Some
also ask about tokens that were not sampled. Those are token weights, and go to `cross_entropy`:

    L = - sum_t sum_k w_tk * log p(v_tk | x_<t)        w of any sign, never differentiated

An advantage is the case in which the sampled token is the only one: for the weights that sampled,
both losses have the gradient - sum_t A_t * grad log p(x_t). So the two kinds can be added (`mixing`).
Knows nothing about where the numbers come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cookbook.datums import Floats, policy_datum, weighted_datum
from cookbook.rollouts import Group, Trajectory
from tinkerlite.types import Datum

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TokenWeights:
    """How much more likely each of K tokens should become, at each of T positions.

    The weights belong to the student that sampled: after an update they are out of date, and no
    importance ratio corrects them. The loop makes one update per batch, so they never are.
    """

    tokens: Ids
    """(T, K) token ids; the sampled token comes first. An id may occur twice: its weights add up."""
    weights: Floats
    """(T, K) of any sign, in nats."""


Credit = Floats | TokenWeights
"""What is asked of one trajectory: (T,) advantages of its own tokens, or weights of K tokens each."""

Objective = Callable[[Sequence[Group]], Sequence[Sequence[Credit]]]
"""Groups to one credit per trajectory, in the groups' order. Every `AdvantageFn` is one."""


def training_data(groups: Sequence[Group], credits: Sequence[Sequence[Credit]]) -> tuple[list[Datum], str]:
    """One datum per trajectory, groups after one another, and the loss that they are for.

    Advantages alone keep the importance ratio, which corrects a sampler that lags behind the trainer.
    One trajectory with token weights makes all of them `cross_entropy` data.
    """
    pairs = [
        (trajectory, credit)
        for group, of_group in zip(groups, credits, strict=True)
        for trajectory, credit in zip(group.trajectories, of_group, strict=True)
    ]
    if any(isinstance(credit, TokenWeights) for _, credit in pairs):
        return [_weighted(trajectory, credit) for trajectory, credit in pairs], "cross_entropy"
    return [
        policy_datum(trajectory.prompt_tokens, trajectory.completion_tokens, trajectory.logprobs, credit)
        for trajectory, credit in pairs
        if not isinstance(credit, TokenWeights)  # none is; this says so to the type checker
    ], "importance_sampling"


def as_token_weights(trajectory: Trajectory, credit: Credit) -> TokenWeights:
    """Advantages as weights of the sampled tokens; token weights as they are."""
    if isinstance(credit, TokenWeights):
        return credit
    sampled = np.asarray(trajectory.completion_tokens, dtype=np.int64)
    return TokenWeights(sampled[:, None], credit[:, None])


def added(trajectory: Trajectory, first: Credit, second: Credit) -> Credit:
    """Both at once: what is asked of the sampled token adds up, other tokens stand beside it."""
    if not isinstance(first, TokenWeights) and not isinstance(second, TokenWeights):
        return first + second
    a, b = as_token_weights(trajectory, first), as_token_weights(trajectory, second)
    return TokenWeights(
        np.concatenate([a.tokens, b.tokens[:, 1:]], axis=1),
        np.concatenate([a.weights[:, :1] + b.weights[:, :1], a.weights[:, 1:], b.weights[:, 1:]], axis=1),
    )


def _weighted(trajectory: Trajectory, credit: Credit) -> Datum:
    asked = as_token_weights(trajectory, credit)
    return weighted_datum(trajectory.prompt_tokens, trajectory.completion_tokens, asked.tokens, asked.weights)
