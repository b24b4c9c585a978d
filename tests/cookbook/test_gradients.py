"""What every objective asks for on average, on five tokens: exact, by writing all completions down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cookbook.advantages import group_relative, reverse_kl
from cookbook.byte_spans import Span, shares
from cookbook.controls import fixed_negative
from cookbook.datums import Floats
from cookbook.entropy import entropy_aware, where_student_is_unsure
from cookbook.mixing import RoutedTeachers, scaled, total
from cookbook.objectives import Objective, as_token_weights
from cookbook.rollouts import Group
from cookbook.top_k import (
    Known,
    Tail,
    bucket_tail,
    compare,
    control_variate,
    generalised_tail,
    sampled_tail,
    top_k_reverse_kl,
)
from tests.cookbook.five_tokens import (
    FiveTokens,
    V,
    expected_gradient,
    gradient_of,
    kl_by_state,
    top,
    variance,
    visits,
)
from tests.cookbook.groups import PROBLEM

STUDENT, TEACHER = FiveTokens(0), FiveTokens(1)
EVERY_K = range(1, V + 1)
TAILS = (sampled_tail, bucket_tail, generalised_tail)


def agree(first: np.ndarray, second: np.ndarray, tolerance: float = 1e-6) -> None:
    assert np.abs(second).max() > 0.01, "there is something to agree on"
    assert first == pytest.approx(second, abs=tolerance)


def kl_gradient(length: int = 2) -> np.ndarray:
    """Of the KL at the states that the student visits; where it goes is not differentiated."""
    by_state = visits(STUDENT, length).detach() * kl_by_state(STUDENT, TEACHER)
    return gradient_of(STUDENT, by_state.sum())


# ---- plain distillation, and its options ----


def test_distillation_follows_the_gradient_of_the_reverse_kl_at_the_states_that_it_visits():
    agree(expected_gradient(STUDENT, reverse_kl(TEACHER), length=2), kl_gradient())


def test_with_a_discount_of_one_it_is_the_gradient_of_the_kl_of_whole_completions():
    whole = (visits(STUDENT) * kl_by_state(STUDENT, TEACHER)).sum()  # where it goes is differentiated too
    of_whole = gradient_of(STUDENT, whole)
    agree(expected_gradient(STUDENT, reverse_kl(TEACHER, discount=1.0), length=2), of_whole)
    assert np.abs(of_whole - kl_gradient()).max() > 0.01


def test_a_shorter_rollout_follows_the_same_gradient_where_it_gets_to():
    short = expected_gradient(STUDENT, reverse_kl(TEACHER), length=1)
    agree(short[0], kl_gradient()[0])
    assert not short[1:].any()


def test_a_clip_limits_what_one_token_can_ask_for():
    s, log_ratio = STUDENT.logprobs.exp(), (STUDENT.logprobs - TEACHER.logprobs).detach()
    clipped = (s.detach() * log_ratio.clamp(-0.5, 0.5) * STUDENT.logprobs)[0].sum()
    assert log_ratio[0].abs().max() > 0.5
    agree(expected_gradient(STUDENT, reverse_kl(TEACHER, clip=0.5)), gradient_of(STUDENT, clipped))


def test_rl_follows_the_gradient_of_the_expected_reward():
    reward = STUDENT.logprobs.exp()[0, 2]
    agree(expected_gradient(STUDENT, group_relative, length=2), gradient_of(STUDENT, -reward))


def test_advantages_ask_the_same_as_weights_of_the_sampled_tokens():
    agree(
        expected_gradient(STUDENT, on_sampled_tokens(reverse_kl(TEACHER)), length=2),
        expected_gradient(STUDENT, reverse_kl(TEACHER), length=2),
    )


def on_sampled_tokens(objective: Objective) -> Objective:
    return lambda groups: [
        [as_token_weights(*pair) for pair in zip(group.trajectories, credits, strict=True)]
        for group, credits in zip(groups, objective(groups), strict=True)
    ]


# ---- top-k ----


@pytest.mark.parametrize("tail", TAILS)
def test_on_the_whole_vocabulary_every_top_k_kl_is_the_whole_kl(tail: Tail):
    objective = top_k_reverse_kl(TEACHER, tail=tail)
    agree(expected_gradient(STUDENT, objective, length=2, alternatives=V), kl_gradient())


@pytest.mark.parametrize("k", EVERY_K)
def test_with_a_sampled_tail_it_is_the_whole_kl_at_every_k(k: int):
    agree(expected_gradient(STUDENT, top_k_reverse_kl(TEACHER), length=2, alternatives=k), kl_gradient())


@pytest.mark.parametrize("k", EVERY_K)
def test_a_bucket_tail_follows_the_kl_in_which_all_other_tokens_count_as_one(k: int):
    s, t = inside(STUDENT, k), inside(TEACHER, k).detach()
    buckets = [(s, t)] if k == V else [(s, t), (1 - s.sum(-1, keepdim=True), 1 - t.sum(-1, keepdim=True))]
    kl = sum((a * (a / b).log()).sum() for a, b in buckets)
    assert isinstance(kl, Tensor)
    objective = top_k_reverse_kl(TEACHER, tail=bucket_tail)
    agree(expected_gradient(STUDENT, objective, alternatives=k), gradient_of(STUDENT, kl))


@pytest.mark.parametrize("k", EVERY_K)
def test_the_generalised_kl_is_followed_on_the_k_tokens_alone(k: int):
    s, t = inside(STUDENT, k), inside(TEACHER, k).detach()
    objective = top_k_reverse_kl(TEACHER, tail=generalised_tail)
    agree(
        expected_gradient(STUDENT, objective, alternatives=k),
        gradient_of(STUDENT, (s * (s / t).log() - s + t).sum()),
    )


def inside(model: FiveTokens, k: int) -> Tensor:
    """(1, k) probabilities after the prompt of the student's k likeliest tokens."""
    return model.logprobs.exp()[:1, top(STUDENT.table[:1], k).token_ids[0].astype(np.int64)]


def test_folded_into_one_number_a_top_k_kl_would_teach_nothing():
    """Why weights: the same number whatever was sampled is a baseline, and has no gradient on average."""

    def folded(groups: Sequence[Group]) -> list[list[Floats]]:
        return [
            [-known.kl_in_k().astype(np.float32) for known in of_group]
            for of_group in compare(groups, TEACHER)
        ]

    assert np.abs(expected_gradient(STUDENT, folded, alternatives=V)).max() < 1e-6


@pytest.mark.parametrize("tail", TAILS)
def test_no_mass_leaves_the_k_tokens(tail: Tail):
    outside, kl = descend(tail)
    assert max(outside) < 1.5 * outside[0]
    assert outside[-1] == pytest.approx(outside[0], rel=0.1)
    assert kl < 0.01


def test_whereas_a_kl_that_is_cut_off_is_lowered_by_driving_mass_out():
    def cut_off(known: Known) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros_like(known.kl), -known.student * (
            known.log_ratio + 1
        )  # d (s log s/T) without - s + T

    outside, kl = descend(cut_off)
    assert outside[-1] > 10 * outside[0]
    assert kl > 0.1


def descend(tail: Tail, steps: int = 100, rate: float = 2.0) -> tuple[list[float], float]:
    """Probability outside the three likeliest tokens, step by step, and the KL at the end.

    Student and teacher hold as much there at the start, and differ within the three.
    """
    student, teacher = FiveTokens(0), FiveTokens(0)
    student.logits.data[0] = torch.tensor([2.0, 1.0, 0.0, -3.0, -3.0])
    teacher.logits.data[0] = torch.tensor([0.0, 1.0, 2.0, -3.0, -3.0])
    outside: list[float] = []
    for _ in range(steps):
        outside.append(1 - float(np.exp(student.table[0, :3]).sum()))
        gradient = expected_gradient(student, top_k_reverse_kl(teacher, tail=tail), alternatives=3)
        student.logits.data -= rate * torch.tensor(gradient)
    return outside, float(kl_by_state(student, teacher)[0].detach())


def test_top_k_takes_the_noise_away():
    plain = variance(STUDENT, reverse_kl(TEACHER))
    noise = [variance(STUDENT, top_k_reverse_kl(TEACHER), alternatives=k) for k in EVERY_K]
    assert noise == sorted(noise, reverse=True)
    assert noise[0] < plain
    assert noise[-1] < 1e-6 * plain


# ---- the control variate ----


@pytest.mark.parametrize("k", EVERY_K)
def test_a_control_variate_does_not_move_the_gradient(k: int):
    agree(expected_gradient(STUDENT, control_variate(TEACHER), length=2, alternatives=k), kl_gradient())


def test_it_lowers_the_noise_of_a_student_near_its_teacher():
    """Not of any pair: a baseline is best where the tokens' gradients are about equally long."""
    plain, baselined = [], []
    for seed in range(20):
        student, teacher = FiveTokens(seed, spread=0.5), FiveTokens(seed + 100)
        teacher.logits.data = student.logits.data + 0.5 * teacher.logits.data
        plain.append(variance(student, reverse_kl(teacher)))
        baselined.append(variance(student, control_variate(teacher), alternatives=V))
    assert sum(baselined) < 0.95 * sum(plain)


def test_on_the_whole_vocabulary_its_advantages_are_zero_on_average():
    student = STUDENT.rollouts(1, alternatives=V)
    [advantages] = control_variate(TEACHER)([student])
    mean = sum(
        STUDENT.probability(t) * float(a[0]) for t, a in zip(student.trajectories, advantages, strict=True)
    )
    assert mean == pytest.approx(0.0, abs=1e-6)


# ---- entropy ----


def test_where_the_teacher_is_unsure_its_own_tokens_are_learned_too():
    entropies = -(TEACHER.logprobs.exp() * TEACHER.logprobs).sum(-1).detach()
    bound = float(entropies.sort().values[2:4].mean())
    objective = entropy_aware(TEACHER, k=V, unsure_above=bound)
    forward = -(TEACHER.logprobs.exp().detach() * STUDENT.logprobs).sum(-1)
    asked = gradient_of(STUDENT, (visits(STUDENT).detach() * forward * (entropies > bound)).sum())
    agree(expected_gradient(STUDENT, objective, length=2), kl_gradient() + asked)
    assert 0 < int((entropies > bound).sum()) < 6


def test_a_share_of_the_tokens_keeps_the_gradient_of_their_states_and_of_no_others():
    entropies = -(STUDENT.logprobs.exp() * STUDENT.logprobs).sum(-1).detach()
    # Of the 50 tokens of all completions of two, 25 are drawn at the first state and 5 at each of the others.
    bound = float(np.quantile(np.repeat(entropies.numpy(), [25, 5, 5, 5, 5, 5]), 0.8))
    kept = visits(STUDENT).detach() * kl_by_state(STUDENT, TEACHER) * (entropies >= bound - 1e-5)
    of_kept = gradient_of(STUDENT, kept.sum())
    for objective in (reverse_kl(TEACHER), top_k_reverse_kl(TEACHER)):
        unsure = where_student_is_unsure(objective, share=0.2)
        agree(expected_gradient(STUDENT, unsure, length=2, alternatives=V), of_kept)
    assert 0 < int((entropies >= bound - 1e-5).sum()) < 6


# ---- mixing and controls ----


@pytest.mark.parametrize(
    "objective", [reverse_kl(TEACHER, kl_coef=0.3), top_k_reverse_kl(TEACHER, kl_coef=0.3)]
)
def test_a_reward_and_a_teacher_add_their_gradients(objective: Objective):
    reward = expected_gradient(STUDENT, group_relative, length=2)
    mixed = total(scaled(group_relative, 2.0), objective)
    agree(expected_gradient(STUDENT, mixed, length=2, alternatives=3), 2 * reward + 0.3 * kl_gradient())


def test_two_teachers_of_half_the_weight_are_the_mean_of_their_logprobs():
    other = FiveTokens(2)
    both = total(reverse_kl(TEACHER, kl_coef=0.5), reverse_kl(other, kl_coef=0.5))
    mean = (TEACHER.logprobs + other.logprobs).detach() / 2
    s = STUDENT.logprobs
    kl = (s.exp() * (s - mean)).sum(-1)[0]
    agree(expected_gradient(STUDENT, both), gradient_of(STUDENT, kl))


def test_each_problem_follows_the_gradient_of_its_own_teacher():
    teachers: dict[str, Any] = {"one": TEACHER, "two": FiveTokens(2)}
    routed = reverse_kl(RoutedTeachers(teachers))
    for name, teacher in teachers.items():
        problem = replace(PROBLEM, task=name)
        agree(
            expected_gradient(STUDENT, routed, length=2, problem=problem),
            expected_gradient(STUDENT, reverse_kl(teacher), length=2),
        )


def test_the_control_knows_which_tokens_the_teacher_objects_to_and_nothing_else():
    objected = STUDENT.logprobs[0] > TEACHER.logprobs[0]
    assert 0 < int(objected.sum()) < V
    mass = STUDENT.logprobs.exp()[0][objected].sum()
    agree(
        expected_gradient(STUDENT, fixed_negative(TEACHER, objects_above=0.0, size=2.0)),
        gradient_of(STUDENT, 2.0 * mass),
    )


# ---- byte spans ----


class SpelledTeacher:
    """Five tokens of the student spell texts that another vocabulary writes in its own tokens."""

    def __init__(self, logprobs: np.ndarray, spans: list[Span]) -> None:
        self.logprobs = logprobs
        """(5, n) of the teacher's tokens in each text."""
        self.spans = spans

    def score(self, groups: Sequence[Group]) -> list[list[Floats]]:
        return [
            [
                shares(t.logprobs, self.logprobs[i].astype(np.float32), self.spans)
                for i, t in enumerate(g.trajectories)
            ]
            for g in groups
        ]


def test_a_token_that_the_teacher_writes_as_two_is_compared_with_both_exactly():
    """One of the student's tokens against two of the teacher's: KL(s || p of both)."""
    halves = np.log(np.random.default_rng(0).dirichlet(np.ones(V), size=2).T)
    teacher = SpelledTeacher(halves, [Span(range(0, 1), range(0, 2))])
    s = STUDENT.logprobs[0]
    kl = (s.exp() * (s - torch.tensor(halves.sum(axis=1)))).sum()
    agree(expected_gradient(STUDENT, reverse_kl(teacher)), gradient_of(STUDENT, kl))


def test_two_tokens_that_the_teacher_writes_as_one_follow_half_the_gradient_of_their_kl():
    """The approximation that byte_spans states: the right direction, and the size of an n-th."""
    merged = np.log(np.random.default_rng(0).dirichlet(np.ones(V * V)))
    teacher = SpelledTeacher(merged[:, None], [Span(range(0, 2), range(0, 1))])
    s = STUDENT.logprobs
    pairs = (s[0][:, None] + s[1:]).reshape(-1)
    kl = (pairs.exp() * (pairs - torch.tensor(merged))).sum()
    agree(expected_gradient(STUDENT, reverse_kl(teacher), length=2), 0.5 * gradient_of(STUDENT, kl))
