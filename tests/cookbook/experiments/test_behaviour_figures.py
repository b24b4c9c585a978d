"""What E3, E6 and E8 make of result files: tables and bars, from rows written by hand."""

from typing import Any

from cookbook.experiments.continual_learning import experiment as e8
from cookbook.experiments.conversation import kept, last_measured
from cookbook.experiments.experiment import Result
from cookbook.experiments.personalisation import experiment as e3
from cookbook.experiments.self_distillation import experiment as e6


def result(rows: list[dict[str, Any]], seed: int = 0, **setting: Any) -> Result:
    return Result(seed=seed, header={"setting": setting}, rows=rows)


def measured(run: str, step: int = 0, **figures: float) -> dict[str, Any]:
    behaviour = figures.get("behaviour", 0.0)
    kinds = {"behaviour_by_kind": {"Title": behaviour, "Opening": 0.0}}
    return {"run": run, "step": step, "behaviour_loose": behaviour, **kinds, **figures}


# ---- E3 ----


def e3_result(*, documents: float, recovered: tuple[float, float]) -> Result:
    knowledge, behaviour = recovered
    return result(
        [
            measured("start", knowledge=0.0, behaviour=0.5),
            measured("documents", 0, knowledge=0.0, behaviour=0.5),
            measured("documents", 9, knowledge=0.8, behaviour=documents),
            measured("70% documents", 9, knowledge=0.8, behaviour=0.4),
            measured("mix + OPD", 5, knowledge=knowledge, behaviour=behaviour),
            {"run": "mix + OPD", "step": 6, "reverse_kl": 0.1},
        ],
        recovered_share=0.7,
    )


def test_e3_compares_the_last_measured_rows():
    good = e3_result(documents=0.2, recovered=(0.78, 0.48))
    assert [bar.holds for bar in e3.bars([good] * 3)] == [True, True, True]
    alone = e3.bars([good])
    assert [bar.measured for bar in alone] == ["falls by 60.0%", "keeps 96.0%", "keeps 97.5%"]
    assert [bar.holds for bar in alone] == [None, None, None]
    bad = e3.bars([e3_result(documents=0.4, recovered=(0.7, 0.45))] * 3)
    assert [bar.holds for bar in bad] == [False, False, False]


def test_e3_shows_the_posts_figures_beside_ours():
    table = e3.tables([e3_result(documents=0.2, recovered=(0.76, 0.48))])
    assert "| documents | 80.0% | 20.0% | 20.0% | 43% | 45% |" in table
    assert "| mix + OPD | 76.0% | 48.0% | 48.0% | 41% | 83% |" in table
    assert "| strict, by kind | Opening | Title |" in table
    assert "| mix + OPD | 0% | 48% |" in table


# ---- E6 ----


def e6_result(seed: int, *, sft: float, opd: float, kl: float) -> Result:
    return result(
        [
            measured("start", behaviour=0.5, kl_to_start=0.0),
            measured("sft 0.001", 9, behaviour=sft, kl_to_start=kl),
            measured("opd 0.001", 9, behaviour=opd, kl_to_start=0.0),
        ],
        seed,
        learning_rates=[0.001],
    )


def test_e6_holds_if_sft_falls_and_opd_stays_within_its_interval():
    seeds = [e6_result(n, sft=0.4 + n / 100, opd=0.49 + n / 100, kl=0.2) for n in range(3)]
    sft, opd = e6.bars(seeds)
    assert (sft.holds, opd.holds) == (True, True)
    assert sft.measured.startswith("-9.0 points ± ")
    assert sft.measured.endswith(" at 0.001")
    fallen = [e6_result(n, sft=0.5, opd=0.4, kl=0.2) for n in range(3)]
    assert [bar.holds for bar in e6.bars(fallen)] == [False, False]


def test_e6_says_nothing_about_sft_where_no_learning_rate_moved_the_model():
    [sft, _] = e6.bars([e6_result(0, sft=0.5, opd=0.5, kl=0.001)])
    assert sft.holds is None
    assert sft.measured == "no learning rate moved it by 0.01 nats per token"


# ---- E8 ----


def e8_result(ends: list[tuple[float, float, float]]) -> Result:
    """(behaviour, knowledge of round 1, of round 2) at the start and after each of four phases.

    Copies know everything, which must not count as the student's.
    """
    names = ["start", *(name(n) for n in (1, 2) for name in (e8.learning, e8.recovery))]
    rows = [
        measured(name, 3, behaviour=behaviour, round_1=first, round_2=second)
        for name, (behaviour, first, second) in zip(names, ends, strict=True)
    ]
    copies = [measured(e8.reading(n), 3, behaviour=0.0, round_1=1.0, round_2=1.0) for n in (1, 2)]
    return result([*rows, *copies], rounds=2)


GOOD = [(0.5, 0.0, 0.0), (0.3, 0.9, 0.0), (0.5, 1.0, 0.0), (0.3, 0.6, 0.9), (0.49, 0.9, 0.8)]


def test_e8_compares_the_end_with_the_start_and_with_each_rounds_peak():
    behaviour, knowledge = e8.bars([e8_result(GOOD)])
    assert (behaviour.holds, knowledge.holds) == (None, None)
    assert behaviour.measured == "98.0% of the start"
    assert knowledge.measured == "round 1: 90.0%, round 2: 88.9%"
    assert [bar.holds for bar in e8.bars([e8_result(GOOD)] * 3)] == [True, True]
    worse = [*GOOD[:-1], (0.45, 0.75, 0.9)]
    assert [bar.holds for bar in e8.bars([e8_result(worse)] * 3)] == [False, False]


def test_e8_says_where_a_round_learned_too_little_to_keep_anything():
    little = [(0.5, 0.0, 0.0), (0.5, 0.9, 0.0), (0.5, 0.9, 0.0), (0.5, 0.9, 0.1), (0.5, 0.9, 0.1)]
    [_, knowledge] = e8.bars([e8_result(little)] * 3)
    assert knowledge.holds is None
    assert knowledge.measured.endswith("round 2: learned too little")


def test_e8_has_a_row_for_every_phase():
    lines = e8.tables([e8_result(GOOD)]).splitlines()
    assert lines[0] == "| after | behaviour | knowledge 1 | knowledge 2 |"
    assert len(lines) == 2 + 7
    assert lines[3] == "| round 1: a copy reads | 0.0% | 100.0% | 100.0% |"
    assert lines[-1] == "| round 2: recover | 49.0% | 90.0% | 80.0% |"


# ---- shared ----


def test_the_last_measured_value_is_not_that_of_the_last_row():
    rows = [{"run": "a", "x": 1.0}, {"run": "a", "x": 2.0}, {"run": "a"}]
    assert last_measured(rows, "x") == 2.0


def test_where_there_was_nothing_no_share_is_left():
    assert kept(0.0, 0.0) is None
    assert kept(0.2, 0.4) == 0.5
    assert kept(0.2, 0.4, least=0.5) is None
