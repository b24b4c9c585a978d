"""A student and a teacher of five tokens, small enough that every completion can be written down.

Expectations over what the student samples are sums over all its completions, so the gradient that an
objective asks for *on average* is exact, through the datums and the server's own losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from cookbook.datums import Floats
from cookbook.objectives import Objective, training_data
from cookbook.rollouts import Grade, Group, Problem, Trajectory
from tests.cookbook.groups import PROBLEM
from tinkerlite.types import Datum, TopkLogprobs
from tinkerlite_server.engine.losses import LOSSES

V = 5
PROMPT = [7, 8]
"""Two given tokens, so that prompt positions are there to be got wrong."""


class FiveTokens:
    """A model as a table: logits (6, 5), row 0 after the prompt, row 1 + a after the token a."""

    def __init__(self, seed: int, spread: float = 1.5) -> None:
        logits = np.random.default_rng(seed).normal(size=(1 + V, V)) * spread
        self.logits = torch.tensor(logits, dtype=torch.float64, requires_grad=True)

    @property
    def logprobs(self) -> Tensor:
        """(6, 5)."""
        return self.logits.log_softmax(-1)

    @property
    def table(self) -> np.ndarray:
        """The same as an array."""
        return self.logprobs.detach().numpy()

    # ---- as a student ----

    def rollouts(self, length: int, *, alternatives: int = 0, problem: Problem = PROBLEM) -> Group:
        """Every completion of this length, each once. A reward of 1 for those that begin with token 2."""
        return Group(
            problem=problem,
            trajectories=tuple(
                self._trajectory(list(tokens), alternatives) for tokens in product(range(V), repeat=length)
            ),
        )

    def _trajectory(self, tokens: list[int], alternatives: int) -> Trajectory:
        rows = self.table[states(tokens)]
        likeliest = top(rows, alternatives) if alternatives else None
        reward = float(tokens[0] == 2)
        return Trajectory(
            prompt_tokens=PROMPT,
            completion_tokens=tokens,
            logprobs=rows[np.arange(len(tokens)), tokens].astype(np.float32),
            truncated=True,
            finished=False,
            reply="",
            grade=Grade(reward=reward, correct=reward == 1.0),
            alternatives=likeliest,
        )

    def probability(self, trajectory: Trajectory) -> float:
        """Of sampling it."""
        tokens = trajectory.completion_tokens
        return float(np.exp(self.table[states(tokens), tokens].sum()))

    def target_logprobs(self, datum: Datum) -> Tensor:
        """What the trainer computes: log p of a datum's targets, (N,) or (N, K)."""
        targets = torch.tensor(datum.loss_fn_inputs["target_tokens"].to_numpy())
        given = len(PROMPT) - 1
        read = datum.model_input.to_ints()[len(PROMPT) :]
        rows = self.logprobs[[0, *(1 + token for token in read)]]
        scored = targets[given:]
        index = scored if scored.ndim == 2 else scored[:, None]
        values = rows.gather(1, index)
        return torch.cat(
            [torch.full_like(targets[:given], -1, dtype=values.dtype), values.view(scored.shape)]
        )

    # ---- as a teacher ----

    def start(self, group: Group) -> None:
        """Nothing to begin with."""

    def score(self, groups: Sequence[Group]) -> list[list[Floats]]:
        return [
            [self._gather(t, np.asarray(t.completion_tokens)[:, None])[:, 0] for t in g.trajectories]
            for g in groups
        ]

    def score_alternatives(self, groups: Sequence[Group]) -> list[list[Floats]]:
        return [
            [self._gather(t, t.alternatives.token_ids) for t in g.trajectories if t.alternatives]
            for g in groups
        ]

    def top_k(self, groups: Sequence[Group], k: int) -> list[list[TopkLogprobs]]:
        return [[top(self.table[states(t.completion_tokens)], k) for t in g.trajectories] for g in groups]

    def _gather(self, trajectory: Trajectory, tokens: np.ndarray) -> Floats:
        rows = self.table[states(trajectory.completion_tokens)]
        return np.take_along_axis(rows, tokens.astype(np.int64), axis=1).astype(np.float32)


def states(tokens: Sequence[int]) -> list[int]:
    """Rows of the table that a completion goes through."""
    return [0, *(1 + token for token in tokens[:-1])]


def top(rows: np.ndarray, k: int) -> TopkLogprobs:
    """The k likeliest of each row."""
    ids = np.argsort(-rows, axis=1)[:, :k]
    return TopkLogprobs(ids.astype(np.int32), np.take_along_axis(rows, ids, axis=1).astype(np.float32))


def gradients(
    student: FiveTokens,
    objective: Objective,
    *,
    length: int = 1,
    alternatives: int = 0,
    problem: Problem = PROBLEM,
) -> tuple[np.ndarray, np.ndarray]:
    """What each completion asks of the logits, (C, 6, 5), and its probability under the student, (C,)."""
    group = student.rollouts(length, alternatives=alternatives, problem=problem)
    data, loss_fn = training_data([group], objective([group]))
    each: list[np.ndarray] = []
    for datum in data:
        inputs = {name: torch.tensor(value.to_numpy()) for name, value in datum.loss_fn_inputs.items()}
        loss = LOSSES[loss_fn](student.target_logprobs(datum), inputs, {}).sum()
        [gradient] = torch.autograd.grad(loss, student.logits)
        each.append(gradient.numpy())
    return np.stack(each), np.asarray([student.probability(t) for t in group.trajectories])


def expected_gradient(
    student: FiveTokens,
    objective: Objective,
    *,
    length: int = 1,
    alternatives: int = 0,
    problem: Problem = PROBLEM,
) -> np.ndarray:
    """(6, 5) gradient of the loss with respect to the logits, averaged over what the student samples."""
    each, probabilities = gradients(
        student, objective, length=length, alternatives=alternatives, problem=problem
    )
    return np.tensordot(probabilities, each, axes=1)


def variance(student: FiveTokens, objective: Objective, *, alternatives: int = 0) -> float:
    """E |g|^2 - |E g|^2 of the gradient of one sampled token."""
    each, probabilities = gradients(student, objective, alternatives=alternatives)
    mean = np.tensordot(probabilities, each, axes=1)
    return float(probabilities @ (each**2).sum(axis=(1, 2)) - (mean**2).sum())


def gradient_of(student: FiveTokens, value: Tensor) -> np.ndarray:
    """(6, 5) autograd's."""
    return torch.autograd.grad(value, student.logits)[0].numpy()


def kl_by_state(student: FiveTokens, teacher: FiveTokens) -> Tensor:
    """(6,) KL(student || teacher) at each state, over the whole vocabulary."""
    return (student.logprobs.exp() * (student.logprobs - teacher.logprobs.detach())).sum(-1)


def visits(student: FiveTokens, length: int = 2) -> Tensor:
    """(6,) how often the student comes to each state in a completion of one or two tokens."""
    second = torch.zeros(V, dtype=torch.float64) if length == 1 else student.logprobs[0].exp()
    return torch.cat([torch.ones(1, dtype=torch.float64), second])
