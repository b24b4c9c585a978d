"""Losses by hand: two tokens, numbers one can check on paper."""

import math

import pytest
import torch

from tinkerlite_server.engine.losses import LOSSES

LP = [math.log(0.5), math.log(0.2)]


def run(
    name: str, config: dict[str, float] | None = None, **inputs: list[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Elementwise loss, and the gradient of its sum with respect to the logprobs."""
    lp = torch.tensor(LP, requires_grad=True)
    loss = LOSSES[name](lp, {key: torch.tensor(value) for key, value in inputs.items()}, config or {})
    loss.sum().backward()
    assert lp.grad is not None
    return loss.detach(), lp.grad


def test_cross_entropy_is_minus_the_weighted_logprob_for_weights_of_any_sign():
    loss, gradient = run("cross_entropy", weights=[2.0, -1.0])
    assert loss.tolist() == pytest.approx([-2 * LP[0], LP[1]])
    assert gradient.tolist() == [-2.0, 1.0]


def test_importance_sampling_weighs_the_advantage_by_the_ratio_of_trainer_to_sampler():
    loss, gradient = run(
        "importance_sampling", logprobs=[math.log(0.25), math.log(0.4)], advantages=[1.0, -3.0]
    )
    assert loss.tolist() == pytest.approx([-2.0, 1.5])  # ratios 2 and 1/2
    assert gradient.tolist() == pytest.approx([-2.0, 1.5])  # d ratio / d lp = ratio


def test_on_policy_importance_sampling_has_the_gradient_of_reinforce():
    _, gradient = run("importance_sampling", logprobs=LP, advantages=[0.7, -0.2])
    assert gradient.tolist() == pytest.approx([-0.7, 0.2])


def test_given_positions_cost_nothing_whatever_the_trainer_thinks_of_them():
    for name in ("importance_sampling", "ppo", "cispo", "dro", "gspo"):
        loss, gradient = run(name, logprobs=[0.0, 0.0], advantages=[0.0, 0.0])
        assert loss.tolist() == [0.0, 0.0], name
        assert gradient.tolist() == [0.0, 0.0], name


def test_ppo_stops_paying_once_the_ratio_leaves_its_bounds_in_the_good_direction():
    # Ratios 2 and 1/2, both beyond the default bounds 0.8 and 1.2.
    q = [math.log(0.25), math.log(0.4)]
    up, up_gradient = run("ppo", logprobs=q, advantages=[1.0, 1.0])
    assert up.tolist() == pytest.approx([-1.2, -0.5])
    assert up_gradient.tolist() == pytest.approx([0.0, -0.5])
    down, down_gradient = run("ppo", logprobs=q, advantages=[-1.0, -1.0])
    assert down.tolist() == pytest.approx([2.0, 0.8])
    assert down_gradient.tolist() == pytest.approx([2.0, 0.0])


def test_bounds_come_per_token_before_per_request_before_default():
    q = [math.log(0.25), math.log(0.25)]
    config = {"clip_low_threshold": 0.5, "clip_high_threshold": 1.5}
    loss, _ = run("ppo", config, logprobs=q, advantages=[1.0, 1.0])
    assert loss.tolist() == pytest.approx([-1.5, -0.8])
    loss, _ = run("ppo", config, logprobs=q, advantages=[1.0, 1.0], clip_high_threshold=[1.9, 9.0])
    assert loss.tolist() == pytest.approx([-1.9, -0.8])


def test_cispo_clips_the_weight_and_keeps_the_gradient_of_every_token():
    q = [math.log(0.05), math.log(0.4)]  # ratios 10 (clipped to 4) and 1/2
    loss, gradient = run("cispo", logprobs=q, advantages=[1.0, 1.0])
    assert loss.tolist() == pytest.approx([-4 * LP[0], -0.5 * LP[1]])
    assert gradient.tolist() == pytest.approx([-4.0, -0.5])


def test_dro_adds_a_quadratic_leash_to_the_sampler():
    q = [LP[0] - 1.0, LP[1] + 2.0]
    loss, gradient = run("dro", {"beta": 0.1}, logprobs=q, advantages=[1.0, 0.0])
    assert loss.tolist() == pytest.approx([-LP[0] + 0.05, 0.2])
    assert gradient.tolist() == pytest.approx([-1 + 0.1, -0.2])


@pytest.mark.parametrize("name", ["ppo", "gspo"])
def test_a_ratio_too_large_for_a_float_is_clipped_like_any_other(name: str):
    loss, gradient = run(name, logprobs=[-9999.0, LP[1]], advantages=[1.0, 0.0])
    assert loss.tolist() == pytest.approx([-1.2, 0.0])
    assert gradient.tolist() == [0.0, 0.0]
    loss, _ = run(name, logprobs=[-9999.0, LP[1]], advantages=[-1.0, -1.0])
    assert loss[0] == math.inf  # for the trainer to refuse


def test_gspo_uses_one_ratio_for_the_sequence_and_gives_each_token_its_gradient():
    q = [LP[0] - 0.1, LP[1] - 0.05]
    s = math.exp(0.075)
    loss, gradient = run("gspo", logprobs=q, advantages=[1.0, 1.0])
    assert loss.tolist() == pytest.approx([-s, -s])
    assert gradient.tolist() == pytest.approx([-s, -s])
    masked, _ = run("gspo", logprobs=q, advantages=[1.0, 1.0], sequence_ratio_mask=[1.0, 0.0])
    assert masked.tolist() == pytest.approx([-math.exp(0.1)] * 2)
