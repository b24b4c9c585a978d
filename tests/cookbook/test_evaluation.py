import pytest

from cookbook.evaluation import Evaluation, SampledEvaluation, compare_paired, t_95, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # By hand for 0 of 10: z^2 = 3.8415; high = z^2 / (10 + z^2) = 0.2775.
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        # 5 of 10: 0.5 ± (z / 10) sqrt(2.5 + z^2 / 4) / (1 + z^2 / 10), that is ± 0.2634.
        (5, 10, 0.2366, 0.7634),
        # 23 of 30, as quoted for a score of 76.7% on AIME.
        (23, 30, 0.5907, 0.8821),
    ],
)
def test_wilson_interval(successes: int, trials: int, low: float, high: float):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("trials", [3, 200, 1000])
def test_the_interval_contains_the_share_itself_at_both_ends(trials: int):
    assert wilson_interval(0, trials)[0] == 0.0
    assert wilson_interval(trials, trials)[1] == 1.0


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_counts_have_no_interval(successes: int, trials: int):
    with pytest.raises(ValueError, match="have no interval"):
        wilson_interval(successes, trials)


def test_an_evaluation_knows_its_accuracy_and_interval():
    evaluation = Evaluation((True, False, True, True))
    assert evaluation.accuracy == 0.75
    assert evaluation.interval == wilson_interval(3, 4)


def test_a_paired_comparison_counts_what_changed():
    before = Evaluation((True, True, False, False, False))
    after = Evaluation((True, False, True, True, False))
    comparison = compare_paired(before, after)
    assert (comparison.gained, comparison.lost) == (2, 1)
    assert comparison.difference == pytest.approx(0.2)
    # 3 changes, at most one of them lost: 2 * (1 + 3) / 8, capped at 1.
    assert comparison.p_value == 1.0


def test_an_uneven_split_is_unlikely_by_chance():
    # 13 gained and 6 lost of 19: the two-sided sign test gives 0.167.
    before = Evaluation((False,) * 13 + (True,) * 6)
    after = Evaluation((True,) * 13 + (False,) * 6)
    assert compare_paired(before, after).p_value == pytest.approx(0.167, abs=1e-3)


def test_models_that_agree_everywhere_cannot_be_told_apart():
    same = Evaluation((True, False))
    assert compare_paired(same, same).p_value == 1.0


def test_evaluations_of_different_sizes_do_not_compare():
    with pytest.raises(ValueError, match="shorter"):
        compare_paired(Evaluation((True, False)), Evaluation((True,)))


# ---- several samples of each problem ----


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (2, 4.303), (5, 2.571), (6, 2.447), (9, 2.262), (30, 2.042), (10_000, 1.960)],
)
def test_quantiles_of_students_t_are_those_of_the_tables(freedom: int, quantile: float):
    assert t_95(freedom) == pytest.approx(quantile, abs=1e-3)


def test_avg_at_k_is_the_mean_share_with_an_interval_over_problems():
    evaluation = SampledEvaluation((0.7, 0.5, 0.3, 0.5))
    assert evaluation.accuracy == 0.5
    half = 3.1824 * (0.08 / 3) ** 0.5 / 2  # the shares' variance is 0.08 / 3, and there are four
    assert evaluation.interval == pytest.approx((0.5 - half, 0.5 + half), abs=1e-4)


def test_problems_that_all_went_alike_are_no_certainty():
    assert SampledEvaluation((0.0,) * 30).interval == wilson_interval(0, 30)
    assert SampledEvaluation((1.0,) * 30).interval == wilson_interval(30, 30)
    assert SampledEvaluation((1.0,)).interval == wilson_interval(1, 1)
