"""E1: what is made of result rows written by hand."""

from dataclasses import asdict
from typing import Any

import pytest

from cookbook.experiments.experiment import Result
from cookbook.experiments.reasoning.experiment import CONTINUATIONS, PRICES, bars, figures_of, tables
from cookbook.ledger import ModelShape, training_flops
from cookbook.work import Work

SHAPE = ModelShape(
    hidden=8,
    layers=1,
    heads=2,
    kv_heads=2,
    head_size=4,
    intermediate=16,
    vocabulary=32,
    trains_adapter=False,
)
STEP = Work(tokens=10, logits=10, attended=50, trained=10)


def run(name: str, accuracies: dict[int, float], *, last: int) -> list[dict[str, Any]]:
    """One update a step, each as dear as any other."""
    rows: list[dict[str, Any]] = [
        {"run": name, "step": step, "work": {"training": asdict(STEP), "data": asdict(Work())}}
        for step in range(last)
    ]
    rows.append({"run": name, "step": last})
    for step, accuracy in accuracies.items():
        rows[step]["accuracy"] = accuracy
    return rows


def result(seed: int = 0, **reached_at: int | None) -> Result:
    """Ways that reach 70%, which is above the target, after so many updates, or never in 90."""
    rows = [
        *run("teacher", {0: 0.0, 1: 0.9}, last=1),
        *run("checkpoint", {0: 0.0, 1: 0.15}, last=1),
        {"run": "shapes", "student": asdict(SHAPE), "teacher": asdict(SHAPE)},
        *({"run": "greedy", "way": way, "accuracy": 0.95} for way in ("checkpoint", *CONTINUATIONS)),
    ]
    for way in CONTINUATIONS:
        step = reached_at[way.replace(" ", "_").replace("-", "_")]
        rows += run(way, {0: 0.15, step or 90: 0.7 if step else 0.3}, last=step or 90)
    return Result(seed=seed, header={}, rows=rows)


def test_the_target_is_a_share_of_the_way_to_the_teacher_and_costs_count_from_the_checkpoint():
    seed = figures_of(result(sft=40, rl=20, opd=10, opd_top_k=4))
    assert seed.target == pytest.approx(0.15 + 0.47 * 0.75)
    assert seed.ways["opd top-k"].free == pytest.approx(4 * training_flops(SHAPE, STEP))
    in_all, _, more, _, rl = PRICES
    assert seed.ratio(more, "opd top-k") == pytest.approx(40 / 4)
    assert seed.ratio(in_all, "opd top-k") == pytest.approx((1 + 40) / 4), "the checkpoint took one"
    assert seed.ratio(rl, "opd") == pytest.approx(2.0)


def test_bars_hold_fail_or_stay_open_with_a_way_that_never_arrived():
    one = result(sft=40, rl=20, opd=10, opd_top_k=4)
    assert {bar.holds for bar in bars([one])} == {None}
    opd, top_k = (bars([one] * 3)[place] for place in (2, 7))
    assert (opd.holds, top_k.holds) == (False, True)
    never = bars([result(sft=None, rl=None, opd=30, opd_top_k=5)] * 3)
    assert never[2].measured == "at least 3.0x (3.0x to 3.0x)"
    assert [bar.holds for bar in never] == [None, None, None, None, True, True, None, True, None, True]
    assert {bar.holds for bar in bars([result(sft=40, rl=20, opd=None, opd_top_k=4)])[:5]} == {False}


def test_tables_mark_lower_bounds_and_show_greedy_decoding():
    text = tables([result(sft=None, rl=20, opd=10, opd_top_k=4)])
    assert "| seed 0 | 95.0% | 95.0% | 95.0% | 95.0% | 95.0% |" in text
    assert "| OPD | 47.0% (target) | at least 9.1x | at least 9.1x | at least 9.0x |" in text
    assert "| OPD, post | 47.0% | 9.0x | 29.5x | 6.7x | 22.1x |  |" in text
    assert "> " in text
