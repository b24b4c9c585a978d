import numpy as np
import pytest

from cookbook.diagnostics import advantage_figures, agreement_figures, kl_figures, rollout_figures
from tests.cookbook.groups import make_group, make_trajectory


def test_rollout_figures():
    groups = [
        make_group(
            make_trajectory(logprobs=[-1.0, -2.0], reward=1.0),
            make_trajectory(logprobs=[-3.0], reward=0.0, truncated=True),
        ),
        make_group(make_trajectory(logprobs=[-1.0]), make_trajectory(logprobs=[-1.0])),
    ]
    figures = rollout_figures(groups)
    assert figures["reward"] == 0.25
    assert figures["rollout_accuracy"] == 0.25
    assert figures["uniform_groups"] == 0.5
    assert figures["truncated_fraction"] == 0.25
    assert figures["completion_tokens"] == 5
    assert figures["completion_length"] == 1.25
    assert figures["entropy"] == pytest.approx(8 / 5)


def test_the_reverse_kl_is_the_mean_over_tokens_and_not_over_completions():
    group = make_group(make_trajectory(logprobs=[-1.0]), make_trajectory(logprobs=[-1.0, -1.0, -1.0]))
    scores = [[np.float32([-2.0]), np.float32([-1.0, -3.0, -6.0])]]
    figures = kl_figures([group], scores)
    assert figures["reverse_kl"] == pytest.approx((1 + 0 + 2 + 5) / 4)


def test_positions_are_binned_by_powers_of_two():
    group = make_group(make_trajectory(logprobs=[0.0] * 5), make_trajectory(logprobs=[0.0]))
    scores = [[np.float32([-1, -2, -3, -5, -7]), np.float32([-3])]]
    by_position = kl_figures([group], scores)["kl_by_position"]
    assert by_position == {"0": 2.0, "1": 2.0, "2-3": 4.0, "4-7": 7.0}


def test_a_trainer_that_agrees_with_the_sampler_has_ratios_of_one():
    group = make_group(make_trajectory(logprobs=[-1.0, -2.0]))
    figures = agreement_figures([group], [np.float32([-1.0, -2.0])])
    assert figures["logprob_difference_max"] == 0.0
    assert (figures["ratio_min"], figures["ratio_mean"], figures["ratio_max"]) == (1.0, 1.0, 1.0)


def test_a_trainer_that_differs_is_measured_token_by_token():
    group = make_group(make_trajectory(logprobs=[-1.0, -2.0]))
    figures = agreement_figures([group], [np.float32([-1.5, -2.0])])
    assert figures["logprob_difference_mean"] == 0.25
    assert figures["logprob_difference_max"] == 0.5
    assert figures["ratio_min"] == pytest.approx(np.exp(-0.5))


def test_advantage_figures():
    figures = advantage_figures([[np.float32([3.0, -4.0])], [np.float32([0.0, 0.0])]])
    assert figures["advantage_mean"] == -0.25
    assert figures["advantage_rms"] == 2.5
