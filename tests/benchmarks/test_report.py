"""What a benchmark says about its numbers: ratios, floors, and who was skipped. Nothing here is timed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.__main__ import Bench
from benchmarks.floor import Floor, Rates
from benchmarks.homes import Workers
from benchmarks.report import Result, print_table, write_json
from benchmarks.rows import ROWS, Row
from benchmarks.work import Job, Work, policy

THROUGHPUT = Result(
    key="score",
    name="score 8 sequences",
    unit="tok/s",
    higher_is_better=True,
    ours=300.0,
    alternatives={"slow": 100.0, "fast": 200.0},
    floor=400.0,
    skipped={"absent": "needs an environment of its own"},
    work={"groups": 8},
    repetitions={"tinkerlite": [290.0, 300.0, 310.0]},
)

# ---- ratios ----


def test_a_throughput_is_compared_with_the_highest_alternative():
    assert THROUGHPUT.best == "fast"
    assert THROUGHPUT.ratio_to_best == 1.5
    ours_too = {"tinkerlite, in process": 400.0}
    assert replace(THROUGHPUT, alternatives={**THROUGHPUT.alternatives, **ours_too}).best == "fast"
    assert replace(THROUGHPUT, alternatives=ours_too).best == "tinkerlite, in process"
    assert THROUGHPUT.ratio_to_floor == 0.75


def test_a_time_is_compared_with_the_lowest_alternative_and_more_is_better_there_too():
    seconds = replace(THROUGHPUT, unit="s", higher_is_better=False, ours=4.0, floor=1.0)
    seconds = replace(seconds, alternatives={"slow": 10.0, "fast": 8.0})
    assert seconds.best == "fast"
    assert seconds.ratio_to_best == 2.0
    assert seconds.ratio_to_floor == 0.25


def test_a_ratio_without_both_numbers_is_absent_rather_than_zero():
    alone = replace(THROUGHPUT, alternatives={}, floor=None)
    assert (alone.best, alone.ratio_to_best, alone.ratio_to_floor) == (None, None, None)
    failed = replace(THROUGHPUT, ours=None)
    assert (failed.ratio_to_best, failed.ratio_to_floor) == (None, None)


# ---- files and table ----


def test_the_json_has_every_figure_its_ratios_and_the_reasons_for_gaps(tmp_path: Path):
    write_json(tmp_path / "run.json", {"dtype": "float32"}, [THROUGHPUT])
    written = json.loads((tmp_path / "run.json").read_text())
    assert written["dtype"] == "float32"
    [row] = written["rows"]
    assert row["ours"] == 300.0
    assert row["alternatives"] == {"slow": 100.0, "fast": 200.0}
    assert (row["ratio_to_best"], row["ratio_to_floor"]) == (1.5, 0.75)
    assert row["skipped"] == {"absent": "needs an environment of its own"}


def test_the_table_names_everyone_who_was_skipped():
    console = Console(width=160)
    with console.capture() as captured:
        print_table([THROUGHPUT], console)
    assert "fast" in captured.get()
    assert "skipped absent: needs an environment of its own (score)" in captured.get()


# ---- work and floors ----


def test_a_shared_prompt_counts_once_in_distinct_tokens_and_every_time_in_total_tokens():
    work = Work(groups=2, samples=3, prompt=10, tokens=4)
    assert (work.sampled_tokens, work.total_tokens, work.distinct_tokens) == (24, 84, 44)
    assert work.unshared().distinct_tokens == work.unshared().total_tokens == 84


def test_samples_of_a_group_begin_alike_and_repetitions_do_not():
    work = Work(groups=2, samples=2, prompt=8, tokens=8)
    (first, second), (other, _) = work.draw(1, vocab_size=1000)
    assert first[:8].tolist() == second[:8].tolist()
    assert first[8:].tolist() != second[8:].tolist()
    assert first[:8].tolist() != other[:8].tolist()
    again = work.draw(2, vocab_size=1000)[0][0]
    assert first[:8].tolist() != again[:8].tolist()


def test_a_training_example_is_shifted_by_one_and_silent_on_its_prompt():
    example = policy(np.array([5, 6, 7, 8, 9]), prompt=3)
    assert example.tokens.tolist() == [5, 6, 7, 8]
    assert example.targets.tolist() == [6, 7, 8, 9]
    assert (example.advantages != 0).tolist() == [False, False, True, True]
    assert example.logprobs.tolist() == [0.0, 0.0, -10.0, -10.0]


# A model of 100 parameters below an unembedding of 50; 1000 FLOP/s, 600 bytes/s.
FLOOR = Floor(
    body=[(10, 10)],
    head=(5, 10),
    dtype="float32",
    rates=Rates(gemm_flops={"float32": {16: 1000.0, 64: 2000.0}}, read_bytes=600.0),
)


def test_the_best_of_several_measurements_is_taken_rate_by_rate():
    early = Rates(gemm_flops={"float32": {1: 1.0, 64: 9.0}}, read_bytes=5.0)
    late = Rates(gemm_flops={"float32": {1: 2.0, 64: 8.0}}, read_bytes=4.0)
    assert Rates.best([early, late]) == Rates({"float32": {1: 2.0, 64: 9.0}}, 5.0)


def test_a_single_step_is_bound_by_reading_the_weights_and_a_batch_by_multiplying():
    assert FLOOR.pass_seconds(1, 1) == pytest.approx(150 * 4 / 600)  # 0.3 s of FLOP
    assert FLOOR.pass_seconds(64, 64) == pytest.approx(2 * 150 * 64 / 2000)


def test_the_rate_is_that_of_the_next_larger_batch_and_beyond_all_of_the_largest():
    assert [FLOOR.rate(rows) for rows in (1, 16, 17, 64, 65)] == [1000, 1000, 2000, 2000, 2000]


def test_sampling_reads_a_prompt_without_the_unembedding_and_each_further_token_with_it():
    prompt_pass = (2 * 100 * 64 + 2 * 50 * 1) / 2000
    seconds = prompt_pass + 3 * 1.0  # the first token comes out of the prompt's pass
    assert FLOOR.sample(Work(prompt=64, tokens=4)) == pytest.approx(4 / seconds)


def test_the_backward_pass_costs_twice_n_and_four_times_the_adapter():
    forward = 2 * (150 + 40 + 30) * 64  # rank 2: 2 x (10 + 10) and 2 x (5 + 10)
    backward = (2 * 150 + 4 * (40 + 30)) * 64
    assert FLOOR.pass_seconds(64, 64, 2, backward=True) == pytest.approx((forward + backward) / 2000)


def test_scoring_a_group_costs_its_prompt_once():
    work = Work(groups=1, samples=2, prompt=33, tokens=17)  # 33 + 2 x 17 rows, less the two last
    assert FLOOR.score(work) == pytest.approx(100 / (2 * 150 * 65 / 2000))


def test_an_rl_step_samples_and_trains_and_does_not_score():
    work = Work(groups=1, samples=2, prompt=8, tokens=4, rank=2)
    train_seconds = work.total_tokens / FLOOR.train(work)
    assert FLOOR.rl_step(work) == pytest.approx(work.sampled_tokens / FLOOR.sample(work) + train_seconds)


def test_a_submission_copies_four_arrays_out_and_one_back():
    assert FLOOR.submission_milliseconds(Work(groups=3, tokens=100)) == pytest.approx(300 * 5 * 8 / 0.6)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
def test_every_row_names_functions_that_exist_and_sizes_in_its_title(row):
    for function in (row.ours, *row.alternatives.values()):
        module, name = function.split(":")
        source = Path(*module.split(".")).with_suffix(".py").read_text()
        assert f"def {name}(job: Job)" in source
    assert "{" not in row.name(row.work)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
def test_every_row_compares_us_with_somebody_else_or_with_the_floor(row):
    assert row.alternatives or row.floor or row.key == "request-overhead"


def test_what_was_measured_before_an_interruption_is_kept(monkeypatch: pytest.MonkeyPatch):
    def measure(_: Bench, row: Row) -> Result:
        if row is ROWS[2]:
            raise KeyboardInterrupt
        return replace(THROUGHPUT, key=row.key)

    monkeypatch.setattr(Bench, "measure", measure)
    bench = Bench(Job(function="", model="", work=Work()), Workers(), Console(quiet=True))
    assert [result.key for result in bench.measured(ROWS)] == [row.key for row in ROWS[:2]]
