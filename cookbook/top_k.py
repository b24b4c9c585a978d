"""Top-k: distillation on all of the student's likeliest tokens, not only on the one it drew.

With s the student, T the teacher and S the student's k likeliest tokens at a state, the gradient of
the reverse KL there is a sum over the vocabulary, of which `reverse_kl` draws one term:

    grad KL(s || T) = sum_v s_v (log s_v - log T_v) grad log s_v

Here the terms of S are added up, which takes their noise away. Two things have to be right:

- *The sum needs a gradient per token.* Added up into one number on the sampled token, it would be the
  same whatever was sampled, and the expectation of c * grad log s_x is 0. So it goes out as weights
  w_v = s_v (log T_v - log s_v) of k tokens each (`objectives`).
- *The rest must not be forgotten.* A KL that is cut off at S is lowered by moving mass out of S.
  `Tail` says what happens to the rest instead, in three ways.

S is the student's own top-k because the terms are weighted by s: what the student finds unlikely
hardly counts, whatever the teacher thinks of it. It comes with the sample, and being settled before
x_t is drawn it leaves the estimate unbiased. (A forward KL is weighted by T, and wants the teacher's
top-k: `entropy`.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cookbook.advantages import AdvantageFn, Scorer, kl_per_token
from cookbook.datums import Floats
from cookbook.objectives import Ids, Objective, TokenWeights
from cookbook.rollouts import Group, Trajectory, alternatives_of
from tinkerlite.types import EMPTY_SLOT_LOGPROB

Doubles = NDArray[np.float64]

SMALLEST_TAIL = 1e-6
"""Below this, 1 - sum of k float32 probabilities is rounding noise; tails count as this large at least."""


class AlternativesScorer(Scorer, Protocol):
    """Says how likely it finds the student's alternatives as well; `teachers.Teacher` is one."""

    def score_alternatives(self, groups: Sequence[Group]) -> list[list[Floats]]:
        """log p of each of the student's k likeliest tokens, in nats: one (T, k) array per trajectory."""
        ...


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of the two distributions along one trajectory. Logprobs in nats."""

    sampled: Ids
    """(T,)."""
    kl: Doubles
    """(T,) log s - log T of the sampled tokens."""
    tokens: Ids
    """(T, k) the student's likeliest. Unused slots repeat the sampled token, and have probability 0."""
    student: Doubles
    """(T, k) probabilities."""
    log_ratio: Doubles
    """(T, k) log s - log T of the alternatives; 0 in unused slots."""
    student_tail: Doubles
    """(T,) probability outside the k; at least SMALLEST_TAIL."""
    teacher_tail: Doubles
    """(T,)."""

    def kl_in_k(self) -> Doubles:
        """(T,) sum_S s log(s/T) + tail log(tail/tail): the KL when all tokens outside S count as one.

        Never negative, never more than the whole KL, and equal to it at k = V.
        """
        outside = self.student_tail * np.log(self.student_tail / self.teacher_tail)
        return (self.student * self.log_ratio).sum(axis=1) + outside


Tail = Callable[[Known], tuple[Doubles, Doubles]]
"""What to ask of the sampled tokens (T,) and of the alternatives (T, k)."""


def sampled_tail(known: Known) -> tuple[Doubles, Doubles]:
    """Outside S, the token that was drawn stands for all: an advantage, as in plain distillation.

        w_v = s_v (log T_v - log s_v)  in S,    A = log T_x - log s_x  if x is not in S

    Unbiased at every k: at k = 0 it is `reverse_kl`, at k = V there is no noise left.
    """
    outside = ~(known.tokens == known.sampled[:, None]).any(axis=1, where=known.student > 0)
    return np.where(outside, -known.kl, 0.0), -known.student * known.log_ratio


def bucket_tail(known: Known) -> tuple[Doubles, Doubles]:
    """All tokens outside S count as one, whose probability is to become the teacher's.

        w_v = s_v [(log T_v - log s_v) - (log T_tail - log s_tail)]

    The gradient of `Known.kl_in_k`, since s_tail is 1 - sum_S s. Without noise, and without an opinion
    on which of the tokens outside S it should be.

    Source: arXiv:2608.14728.
    """
    shift = np.log(known.student_tail / known.teacher_tail)
    return np.zeros_like(known.kl), -known.student * (known.log_ratio - shift[:, None])


def generalised_tail(known: Known) -> tuple[Doubles, Doubles]:
    """The generalised KL of S alone, which is lowest where s = T on all of S, so that the tails agree too.

        D = sum_S [s_v (log s_v - log T_v) - s_v + T_v],    w_v = s_v (log T_v - log s_v)

    Without - s + T, which cancels what differentiating s log s leaves behind, mass would leave S.

    Source: arXiv:2606.30406, eq. 5.
    """
    return np.zeros_like(known.kl), -known.student * known.log_ratio


def top_k_reverse_kl(
    teacher: AlternativesScorer, *, tail: Tail = sampled_tail, kl_coef: float = 1.0
) -> Objective:
    """On-policy distillation on the student's k likeliest tokens at each of its states.

    k is how many `alternatives` the rollouts record. The teacher scores them in the pass in which it
    scores the sampled tokens.

    Args:
        teacher: scores sampled tokens and alternatives.
        tail: what to do about the tokens outside the k.
        kl_coef: scale of the weights.
    """

    def weights(groups: Sequence[Group]) -> list[list[TokenWeights]]:
        return [
            [_weights(known, tail, kl_coef) for known in of_group] for of_group in compare(groups, teacher)
        ]

    return weights


def control_variate(teacher: AlternativesScorer, *, kl_coef: float = 1.0) -> AdvantageFn:
    """`reverse_kl` with a baseline: how much better a token is than the student's average there.

        A_t = (log T - log s)(x_t) + KL_t(s || T)

    KL_t is that of the k likeliest tokens and the rest as one (`Known.kl_in_k`). It does not depend on
    what was drawn, so the expected gradient is that of `reverse_kl`, exactly and at every k; the noise
    is less. Unlike token weights it keeps the importance ratio.

    Source: arXiv:2605.07865.
    """

    def advantages(groups: Sequence[Group]) -> list[list[Floats]]:
        return [
            [(kl_coef * (known.kl_in_k() - known.kl)).astype(np.float32) for known in of_group]
            for of_group in compare(groups, teacher)
        ]

    return advantages


def compare(groups: Sequence[Group], teacher: AlternativesScorer) -> list[list[Known]]:
    """Student and teacher at each state of each trajectory.

    Raises:
        ValueError: the rollouts recorded no alternatives.
    """
    for group in groups:
        for trajectory in group.trajectories:
            alternatives_of(trajectory)
    return [
        [_known(*each) for each in zip(group.trajectories, kls, alternatives, strict=True)]
        for group, kls, alternatives in zip(
            groups,
            kl_per_token(groups, teacher.score(groups)),
            teacher.score_alternatives(groups),
            strict=True,
        )
    ]


def tail_of(probabilities: Doubles) -> Doubles:
    """(T,) what k probabilities leave over."""
    return np.maximum(1.0 - probabilities.sum(axis=1), SMALLEST_TAIL)


def _known(trajectory: Trajectory, kl: Floats, teacher_logprobs: Floats) -> Known:
    recorded = alternatives_of(trajectory)
    used = recorded.logprobs > EMPTY_SLOT_LOGPROB
    sampled = np.asarray(trajectory.completion_tokens, dtype=np.int64)
    student = np.where(used, np.exp(recorded.logprobs.astype(np.float64)), 0.0)
    teacher = np.where(used, np.exp(teacher_logprobs.astype(np.float64)), 0.0)
    ratio = recorded.logprobs.astype(np.float64) - teacher_logprobs
    return Known(
        sampled=sampled,
        kl=kl.astype(np.float64),
        tokens=np.where(used, recorded.token_ids, sampled[:, None]),
        student=student,
        log_ratio=np.where(used, ratio, 0.0),
        student_tail=tail_of(student),
        teacher_tail=tail_of(teacher),
    )


def _weights(known: Known, tail: Tail, kl_coef: float) -> TokenWeights:
    sampled, alternatives = tail(known)
    return TokenWeights(
        np.concatenate([known.sampled[:, None], known.tokens], axis=1),
        (kl_coef * np.concatenate([sampled[:, None], alternatives], axis=1)).astype(np.float32),
    )
