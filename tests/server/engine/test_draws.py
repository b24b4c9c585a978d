"""Drawing tokens: the right distribution, no excluded token, and nothing of one row in another."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tinkerlite_server.engine.draws import DrawRule, draw_repeatedly, draw_tokens, uniforms

ALMOST_ONE = math.nextafter(1.0, 0.0)


def logits_of(*rows: list[float]) -> Tensor:
    """Rows of probabilities as logits, off by a constant, which must not matter."""
    return torch.tensor(rows).log() + 7.0


def draw(logits: Tensor, rule: DrawRule, *us: float) -> list[int]:
    """The tokens that these uniforms draw from one row of logits."""
    return draw_tokens(logits.expand(len(us), -1), [rule] * len(us), np.array(us)).tokens_B.tolist()


def test_a_uniform_picks_the_token_whose_share_of_the_unit_interval_it_falls_into():
    logits = logits_of([0.1, 0.2, 0.3, 0.4])
    assert draw(logits, DrawRule(), 0.0, 0.09, 0.11, 0.29, 0.31, 0.59, 0.61, 0.99) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_temperature_one_half_squares_the_probabilities():
    # 0.01, 0.04, 0.09, 0.16 of 0.30: shares end at 0.033, 0.167, 0.467, 1.
    rule = DrawRule(temperature=0.5)
    assert draw(logits_of([0.1, 0.2, 0.3, 0.4]), rule, 0.03, 0.04, 0.16, 0.18, 0.46, 0.48) == [
        0,
        1,
        1,
        2,
        2,
        3,
    ]


def test_top_k_renormalises_what_it_keeps():
    # 0.4 and 0.3 of 0.7, likeliest first: the first share ends at 0.571.
    assert draw(logits_of([0.1, 0.2, 0.3, 0.4]), DrawRule(top_k=2), 0.56, 0.58, ALMOST_ONE) == [3, 2, 2]


def test_top_p_keeps_the_shortest_run_of_likeliest_tokens_that_reaches_it():
    logits = logits_of([0.1, 0.2, 0.3, 0.4])
    assert draw(logits, DrawRule(top_p=0.39), ALMOST_ONE) == [3]
    assert draw(logits, DrawRule(top_p=0.41), 0.56, 0.58, ALMOST_ONE) == [3, 2, 2]
    assert draw(logits, DrawRule(top_p=0.95), ALMOST_ONE) == [0]


def test_top_p_is_a_share_of_what_top_k_left():
    # Of the two likeliest, 0.4 is 0.571: enough for 0.5 alone, though it is not of the whole.
    assert draw(logits_of([0.1, 0.2, 0.3, 0.4]), DrawRule(top_k=2, top_p=0.5), ALMOST_ONE) == [3]


@pytest.mark.parametrize(
    "rule",
    [
        DrawRule(temperature=0),
        DrawRule(temperature=3, top_k=1),
        DrawRule(top_p=1e-9),
        DrawRule(temperature=1e-4),
        DrawRule(temperature=1e-300),
    ],
)
def test_each_way_to_ask_for_the_likeliest_token_gives_it(rule: DrawRule):
    logits = torch.randn(20, 700, generator=torch.Generator().manual_seed(0))
    drawn = draw_tokens(logits, [rule] * 20, np.linspace(0, ALMOST_ONE, 20))
    assert drawn.tokens_B.tolist() == logits.argmax(-1).tolist()


def test_greedy_takes_the_lowest_of_equally_likely_ids():
    assert draw(logits_of([0.1, 0.3, 0.3, 0.3]), DrawRule(temperature=0), 0.9) == [1]


@pytest.mark.parametrize(
    "rule", [DrawRule(), DrawRule(temperature=2.0), DrawRule(top_k=6), DrawRule(top_p=0.9999)]
)
@pytest.mark.parametrize("vocabulary", [8, 256, 600])
def test_a_token_of_probability_zero_is_never_drawn_not_even_at_the_ends(rule: DrawRule, vocabulary: int):
    logits = torch.full((1, vocabulary), -torch.inf)
    logits[0, [2, vocabulary - 3]] = torch.tensor([0.0, -3.0])
    assert set(draw(logits, rule, 0.0, 1e-300, 0.5, 0.95, ALMOST_ONE)) == {2, vocabulary - 3}


@pytest.mark.parametrize("vocabulary", [5, 255, 256, 257, 777, 1024])
def test_inverting_by_blocks_equals_inverting_the_whole_running_sum(vocabulary: int):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 3 * torch.randn(1, vocabulary, generator=generator)
    us = np.random.default_rng(0).random(500)
    whole = np.cumsum(logits[0].double().softmax(-1).numpy())
    expected = np.searchsorted(whole, us * whole[-1], side="right")
    drawn = np.array(draw(logits, DrawRule(), *us))
    # fp32 weights move a boundary by 1e-7 of the whole, which no u here is that near to.
    np.testing.assert_array_equal(drawn, expected)


def test_a_nucleus_larger_than_the_first_candidates_equals_sorting_the_whole_row():
    logits = 0.3 * torch.randn(1, 5000, generator=torch.Generator().manual_seed(1))
    us = np.random.default_rng(1).random(200)
    weights, ids = logits[0].double().softmax(-1).sort(descending=True)
    before = weights.cumsum(0) - weights
    kept = weights[before < 0.97].numpy()
    expected = ids.numpy()[np.searchsorted(np.cumsum(kept), us * kept.sum(), side="right")]
    assert len(kept) > 2048
    np.testing.assert_array_equal(draw(logits, DrawRule(top_p=0.97), *us), expected)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (DrawRule(), [0.1, 0.2, 0.3, 0.4]),
        (DrawRule(temperature=0.5), [0.01 / 0.3, 0.04 / 0.3, 0.09 / 0.3, 0.16 / 0.3]),
        (DrawRule(top_k=3), [0, 0.2 / 0.9, 0.3 / 0.9, 0.4 / 0.9]),
        (DrawRule(top_p=0.65), [0, 0, 0.3 / 0.7, 0.4 / 0.7]),
    ],
)
def test_draws_follow_the_distribution(rule: DrawRule, expected: list[float]):
    draws = 20_000
    source = uniforms(seed=3)
    tokens = draw(logits_of([0.1, 0.2, 0.3, 0.4]), rule, *(source.random() for _ in range(draws)))
    counts, wanted = np.bincount(tokens, minlength=4), draws * np.array(expected)
    likely = wanted > 0
    assert counts[~likely].sum() == 0
    chi_square = (((counts - wanted) ** 2)[likely] / wanted[likely]).sum()
    assert chi_square < 16.3  # the 0.999 quantile at three degrees of freedom


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 2.0, 1e-300])
def test_many_draws_from_a_row_are_those_of_as_many_rows(temperature: float):
    generator = torch.Generator().manual_seed(0)
    logits, draws = torch.randn(3, 1000, generator=generator), 70  # more than are made at once
    us = uniforms(seed=1).random((3, draws))
    rule = DrawRule(temperature=temperature)
    expected = [draw(row, rule, *each) for row, each in zip(logits, us, strict=True)]
    assert draw_repeatedly(logits, temperature, us).tolist() == expected


def test_the_logprob_is_untempered_and_over_the_whole_vocabulary():
    logits = logits_of([0.1, 0.2, 0.3, 0.4]) + 50
    for rule in (
        DrawRule(),
        DrawRule(temperature=0.2),
        DrawRule(temperature=0),
        DrawRule(top_k=2, top_p=0.9),
    ):
        drawn = draw_tokens(logits, [rule], np.array([0.3]))
        probability = [0.1, 0.2, 0.3, 0.4][drawn.tokens_B.item()]
        # The logits themselves are only good to 4e-6 at this size.
        assert drawn.logprobs_B.item() == pytest.approx(math.log(probability), abs=1e-5)


def test_logprobs_equal_torch_log_softmax():
    logits = 5 * torch.randn(16, 3000, generator=torch.Generator().manual_seed(2)) - 40
    drawn = draw_tokens(logits, [DrawRule()] * 16, np.linspace(0.02, 0.98, 16))
    expected = logits.double().log_softmax(-1).gather(1, drawn.tokens_B[:, None])[:, 0]
    torch.testing.assert_close(drawn.logprobs_B.double(), expected, rtol=0, atol=2e-6)


def test_the_likeliest_tokens_come_first_with_their_logprobs():
    drawn = draw_tokens(logits_of([0.1, 0.2, 0.3, 0.4]), [DrawRule()], np.array([0.0]), topk=3)
    assert drawn.topk_ids_BK is not None
    assert drawn.topk_logprobs_BK is not None
    assert drawn.topk_ids_BK.tolist() == [[3, 2, 1]]
    assert drawn.topk_logprobs_BK[0].exp().tolist() == pytest.approx([0.4, 0.3, 0.2], abs=1e-5)


def test_a_mixed_batch_draws_what_each_row_draws_alone():
    rules = [
        DrawRule(),
        DrawRule(temperature=0),
        DrawRule(temperature=0.7),
        DrawRule(top_k=5),
        DrawRule(top_k=50, temperature=1.3),
        DrawRule(top_p=0.5),
        DrawRule(top_p=0.999, temperature=2.0),
        DrawRule(top_k=5, top_p=0.8),
        DrawRule(),
    ]
    logits = torch.randn(len(rules), 1000, generator=torch.Generator().manual_seed(4))
    # Coarse logits, as bfloat16 makes them, have ties at every boundary.
    logits = logits.to(torch.bfloat16).float()
    for seed in range(20):
        us = np.random.default_rng(seed).random(len(rules))
        together = draw_tokens(logits, rules, us)
        for row, rule in enumerate(rules):
            alone = draw_tokens(logits[row : row + 1], [rule], us[row : row + 1])
            assert together.tokens_B[row] == alone.tokens_B[0]
            assert together.logprobs_B[row].item() == pytest.approx(alone.logprobs_B.item(), abs=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "rule", [DrawRule(), DrawRule(temperature=0), DrawRule(top_k=2), DrawRule(top_p=0.5)]
)
def test_a_row_that_is_not_finite_says_so_and_leaves_its_neighbours_alone(bad: float, rule: DrawRule):
    logits = logits_of([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4])
    logits[0, 1] = bad
    drawn = draw_tokens(logits, [rule, rule], np.array([0.99, 0.99]))
    assert math.isnan(drawn.logprobs_B[0].item())
    assert drawn.tokens_B[1].item() == draw(logits[1:], rule, 0.99)[0]


def test_one_seed_gives_one_stream_and_neighbouring_seeds_unrelated_ones():
    first, again = uniforms(5).random(1000), uniforms(5).random(1000)
    near = uniforms(6).random(1000)
    np.testing.assert_array_equal(first, again)
    assert abs(np.corrcoef(first, near)[0, 1]) < 0.1
    uniforms(-1), uniforms(2**70)  # any integer is a seed
