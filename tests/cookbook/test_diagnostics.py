import numpy as np
import pytest

from cookbook.diagnostics import (
    advantage_figures,
    agreement_figures,
    clustered_standard_error,
    kl_figures,
    rollout_figures,
    staleness_figures,
)
from cookbook.rollouts import Group
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
    # Per prompt the sums are 0.5 off; se = sqrt(2/1 * (0.25 + 0.25)) / 4 = 0.25.
    half = 12.706 * 0.25  # of two prompts, one degree of freedom
    assert figures["reward_interval"] == pytest.approx([0.25 - half, 0.25 + half], abs=1e-3)
    assert figures["rollout_accuracy"] == 0.25
    assert figures["uniform_groups"] == 0.5
    assert figures["truncated_fraction"] == 0.25
    assert figures["end_of_text_rate"] == 0.75
    assert figures["distinct_prompts"] == 1
    assert figures["distinct_completions"] == 2  # by their tokens, which make_trajectory numbers
    assert figures["completion_tokens"] == 5
    assert figures["completion_length"] == 1.25
    assert figures["entropy"] == pytest.approx(8 / 5)


def test_the_reverse_kl_is_the_mean_over_tokens_and_not_over_completions():
    group = make_group(make_trajectory(logprobs=[-1.0]), make_trajectory(logprobs=[-1.0, -1.0, -1.0]))
    scores = [[np.float32([-2.0]), np.float32([-1.0, -3.0, -6.0])]]
    figures = kl_figures([group], scores)
    assert figures["reverse_kl"] == pytest.approx((1 + 0 + 2 + 5) / 4)


def test_the_interval_of_the_kl_is_over_prompts_whose_completions_hang_together():
    groups = [
        make_group(make_trajectory(logprobs=[0.0]), make_trajectory(logprobs=[0.0])),
        make_group(make_trajectory(logprobs=[0.0]), make_trajectory(logprobs=[0.0])),
    ]
    scores = [[np.float32([-1.0]), np.float32([-1.0])], [np.float32([-3.0]), np.float32([-3.0])]]
    # Mean 2; per prompt the sums are 2 off; se = sqrt(2/1 * (4 + 4)) / 4 = 1.
    low, high = kl_figures(groups, scores)["reverse_kl_interval"]
    assert (low, high) == pytest.approx((2 - 12.706, 2 + 12.706), abs=1e-3)


def test_clusters_of_one_value_have_the_usual_standard_error():
    values = np.float32([1.0, 2.0, 4.0, 7.0])
    usual = values.std(ddof=1) / 2
    assert clustered_standard_error([v[None] for v in values]) == pytest.approx(usual, rel=1e-6)
    assert clustered_standard_error([values]) == 0.0


def test_with_one_prompt_the_interval_is_over_its_completions():
    group = make_group(make_trajectory(logprobs=[0.0]), make_trajectory(logprobs=[0.0]))
    low, high = kl_figures([group], [[np.float32([-1.0]), np.float32([-3.0])]])["reverse_kl_interval"]
    assert (low, high) == pytest.approx((2 - 12.706, 2 + 12.706), abs=1e-3)


def test_a_single_completion_has_no_interval():
    group = make_group(make_trajectory(logprobs=[0.0]))
    assert kl_figures([group], [[np.float32([-1.0])]])["reverse_kl_interval"] is None
    assert rollout_figures([group])["reward_interval"] is None


def test_staleness_is_how_many_updates_behind_the_rollouts_are():
    trajectory = make_trajectory(logprobs=[-1.0])
    groups = [
        Group(problem=make_group().problem, trajectories=(trajectory,), policy_version=v) for v in (4, 5)
    ]
    assert staleness_figures(groups, 5) == {"staleness_mean": 0.5, "staleness_max": 1}


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
    assert (figures["ratio_p1"], figures["ratio_p50"], figures["ratio_p99"]) == (1.0, 1.0, 1.0)
    assert figures["sampler_trainer_kl"] == 0.0


def test_a_trainer_that_differs_is_measured_token_by_token():
    group = make_group(make_trajectory(logprobs=[-1.0, -2.0]))
    figures = agreement_figures([group], [np.float32([-1.5, -2.0])])
    assert figures["logprob_difference_mean"] == 0.25
    assert figures["logprob_difference_max"] == 0.5
    assert figures["ratio_min"] == pytest.approx(np.exp(-0.5))
    # Half of the tokens, at r - 1 - log r = 0.6065 - 1 + 0.5.
    assert figures["sampler_trainer_kl"] == pytest.approx(0.1065 / 2, abs=1e-4)
    assert figures["ratio_p50"] == pytest.approx((1 + np.exp(-0.5)) / 2)


def test_advantage_figures():
    figures = advantage_figures([[np.float32([3.0, -4.0])], [np.float32([0.0, 0.0])]])
    assert figures["advantage_mean"] == -0.25
    assert figures["advantage_rms"] == 2.5
