"""What the comparison of variants makes of its results."""

import pytest

from cookbook.experiments.experiment import Result
from cookbook.experiments.variants.catalogue import VARIANTS, Variant, short
from cookbook.experiments.variants.experiment import bars, outcomes, tables
from cookbook.loop import TrainConfig

PLAIN = {0: 0.80, 1: 0.90, 2: 0.85}
CHANGES = {"control: fixed penalty": (-0.30, -0.31, -0.29), "top-k": (0.10, -0.10, 0.01)}


def result(seed: int) -> Result:
    rows = [
        {"run": f"{name}teacher", "step": 0, "accuracy": 0.9} for name in ("", "second-", "told-", "byte-")
    ]
    for name in VARIANTS:
        end = PLAIN[seed] + CHANGES.get(name, (0.0, 0.0, 0.0))[seed]
        rows += [
            {"run": name, "step": 0, "accuracy": 0.0, "reverse_kl": 2.0, "completion_tokens": 40},
            {"run": name, "step": 1, "reverse_kl": 1.0, "completion_tokens": 30},
            {"run": name, "step": 2, "accuracy": end, "reverse_kl": 0.1, "completion_tokens": 30},
        ]
    return Result(seed=seed, header={}, rows=rows)


RESULTS = [result(seed) for seed in PLAIN]


def test_differences_are_taken_seed_by_seed():
    found = {outcome.name: outcome for outcome in outcomes(RESULTS)}
    control = found["control: fixed penalty"]
    assert control.difference.values == pytest.approx((-0.30, -0.31, -0.29))
    # 4.303 * 0.01 / sqrt(3): far narrower than the accuracies, which differ by seed.
    assert control.difference.half == pytest.approx(0.0248, abs=1e-3)
    assert found["plain"].accuracy.half == pytest.approx(0.124, abs=1e-3)


def test_arriving_is_at_ninety_percent_of_the_teacher_and_sampling_counts_updates_alone():
    found = {outcome.name: outcome for outcome in outcomes(RESULTS)}
    assert found["plain"].arrived == (None, 2, 2)  # 0.81 of 0.9
    assert found["plain"].tokens.mean == 70
    assert "| plain | 85.0%" in tables(RESULTS)
    assert "never / 2 / 2" in tables(RESULTS)


def test_a_bar_is_open_where_the_noise_is_larger_than_what_was_found():
    verdicts = {bar.claim: bar.holds for bar in bars(RESULTS)}
    [ahead] = [holds for claim, holds in verdicts.items() if "the control" in claim]
    [top_k] = [holds for claim, holds in verdicts.items() if "'top-k'" in claim]
    [teachers] = [holds for claim, holds in verdicts.items() if "a teacher each" in claim]
    assert (ahead, top_k, teachers) == (True, None, None)
    [same] = [holds for claim, holds in verdicts.items() if "'control variate'" in claim]
    assert same, "as good with every seed"
    assert {bar.holds for bar in bars(RESULTS[:1])} == {None}


def test_no_variant_changes_the_number_of_rollouts():
    config = TrainConfig(max_tokens=8)
    for variant in VARIANTS.values():
        changed = variant.sizes(config)
        assert (changed.steps, changed.prompts_per_step, changed.group_size) == (
            config.steps,
            config.prompts_per_step,
            config.group_size,
        )
        assert changed.max_tokens == 8, "evaluations stay as they are"
    assert isinstance(VARIANTS["short rollouts"], Variant)
    assert short(config).rollout_tokens == 2
