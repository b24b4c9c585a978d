import math

import numpy as np
import pytest

from cookbook.advantages import group_relative, kl_per_token, reverse_kl
from tests.cookbook.groups import FixedScorer, make_group, make_trajectory


def test_a_trajectory_that_beats_its_group_is_pushed_up_on_every_token():
    group = make_group(
        make_trajectory(logprobs=[-1.0, -1.0], reward=1.0),
        make_trajectory(logprobs=[-1.0, -1.0, -1.0], reward=0.0),
    )
    [[better, worse]] = group_relative([group])
    assert better.tolist() == [0.5, 0.5]
    assert worse.tolist() == [-0.5, -0.5, -0.5]
    assert better.dtype == np.float32


def test_rewards_are_centred_within_a_group_and_not_across_groups():
    easy = make_group(
        make_trajectory(logprobs=[-1.0], reward=1.0), make_trajectory(logprobs=[-1.0], reward=0.5)
    )
    hard = make_group(
        make_trajectory(logprobs=[-1.0], reward=0.5), make_trajectory(logprobs=[-1.0], reward=0.0)
    )
    values = [[a.tolist() for a in of_group] for of_group in group_relative([easy, hard])]
    assert values == [[[0.25], [-0.25]], [[0.25], [-0.25]]]


def test_a_group_of_equal_rewards_teaches_rl_nothing():
    group = make_group(
        make_trajectory(logprobs=[-1.0], reward=1.0), make_trajectory(logprobs=[-2.0], reward=1.0)
    )
    assert [a.tolist() for a in group_relative([group])[0]] == [[0.0], [0.0]]


def test_a_group_of_one_is_rejected_with_the_way_out():
    with pytest.raises(ValueError, match="set group_size to 2 or more"):
        group_relative([make_group(make_trajectory(logprobs=[-1.0], reward=1.0))])


def test_reverse_kl_is_what_the_teacher_thinks_minus_what_the_student_thought():
    group = make_group(make_trajectory(logprobs=[-1.0, -0.5]))
    [[advantages]] = reverse_kl(FixedScorer([-3.0, -0.25]))([group])
    assert advantages.tolist() == [-2.0, 0.25]
    assert advantages.dtype == np.float32


def test_equal_rewards_still_train_under_distillation():
    group = make_group(
        make_trajectory(logprobs=[-1.0], reward=0.0), make_trajectory(logprobs=[-1.0], reward=0.0)
    )
    [[first, second]] = reverse_kl(FixedScorer([-2.0], [-0.5]))([group])
    assert (first.tolist(), second.tolist()) == ([-1.0], [0.5])


def test_a_teacher_that_agrees_asks_for_nothing_even_of_a_one_token_completion():
    group = make_group(make_trajectory(logprobs=[-0.7]), make_trajectory(logprobs=[-0.3, -1.1]))
    [[one_token, two_tokens]] = reverse_kl(FixedScorer([-0.7], [-0.3, -1.1]))([group])
    assert one_token.tolist() == [0.0]
    assert two_tokens.tolist() == [0.0, 0.0]


def test_the_expectation_is_kl_of_student_to_teacher_and_not_the_other_way_round():
    # Two tokens, student (0.9, 0.1), teacher (0.5, 0.5):
    #   KL(student || teacher) = 0.9 ln(0.9/0.5) + 0.1 ln(0.1/0.5) = 0.5290 - 0.1609 = 0.3681
    #   KL(teacher || student) = 0.5 ln(0.5/0.9) + 0.5 ln(0.5/0.1) = -0.2939 + 0.8047 = 0.5108
    student, teacher = (0.9, 0.1), (0.5, 0.5)
    group = make_group(*(make_trajectory(logprobs=[math.log(p)]) for p in student))
    [[likely, unlikely]] = reverse_kl(FixedScorer(*([math.log(p)] for p in teacher)))([group])
    expected_kl = -(student[0] * likely[0] + student[1] * unlikely[0])
    assert expected_kl == pytest.approx(0.3681, abs=1e-4)
    # The token that the student overdoes is pushed down, the other one up.
    assert likely[0] == pytest.approx(-math.log(1.8))
    assert unlikely[0] == pytest.approx(math.log(5.0))


def test_the_coefficient_scales_and_the_clip_limits_one_token_before_it():
    group = make_group(make_trajectory(logprobs=[-1.0, -1.0, -1.0]))
    [[advantages]] = reverse_kl(FixedScorer([-11.0, -1.5, 0.0]), kl_coef=2.0, clip=5.0)([group])
    assert advantages.tolist() == [-10.0, -1.0, 2.0]


def test_a_discount_makes_a_token_answer_for_what_follows_it():
    group = make_group(make_trajectory(logprobs=[-1.0, -1.0, -1.0]))
    # kl = (1, 2, 4); with discount 0.5: 1 + 0.5 (2 + 0.5 * 4) = 3, 2 + 0.5 * 4 = 4, 4.
    [[advantages]] = reverse_kl(FixedScorer([-2.0, -3.0, -5.0]), discount=0.5)([group])
    assert advantages.tolist() == [-3.0, -4.0, -4.0]


def test_the_kl_is_not_rescaled_by_its_spread_over_the_batch():
    group = make_group(make_trajectory(logprobs=[-1.0, -1.0]))
    [[small]] = reverse_kl(FixedScorer([-1.5, -1.25]))([group])
    [[large]] = reverse_kl(FixedScorer([-3.0, -2.0]))([group])
    assert (small * 4).tolist() == large.tolist()


def test_kl_per_token_keeps_the_order_of_groups_and_trajectories():
    groups = [
        make_group(make_trajectory(logprobs=[-1.0])),
        make_group(make_trajectory(logprobs=[-2.0, -3.0])),
    ]
    scores = [[np.float32([-4.0])], [np.float32([-2.0, -1.0])]]
    assert [[kl.tolist() for kl in of_group] for of_group in kl_per_token(groups, scores)] == [
        [[3.0]],
        [[0.0, -2.0]],
    ]
