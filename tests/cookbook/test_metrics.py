from pathlib import Path

import pytest

from cookbook.metrics import MetricsFile, figures, read_metrics, without_not_finite


def test_a_row_is_on_disk_before_the_file_is_closed(tmp_path: Path):
    path = tmp_path / "new" / "metrics.jsonl"
    with MetricsFile(path) as metrics:
        metrics.write({"step": 0, "reverse_kl": 1.5, "accuracy": None})
        assert read_metrics(path) == [{"step": 0, "reverse_kl": 1.5, "accuracy": None}]


def test_a_row_cut_by_a_crash_is_dropped_and_the_others_stay(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"ste')
    assert read_metrics(path) == [{"step": 0}, {"step": 1}]


def test_what_json_cannot_hold_is_refused_and_leaves_no_broken_line(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as metrics:
        with pytest.raises(ValueError, match="not JSON compliant"):
            metrics.write({"loss": float("nan")})
        metrics.write({"step": 1})
    assert read_metrics(path) == [{"step": 1}]


def test_a_new_run_starts_a_new_file(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        with MetricsFile(path) as metrics:
            metrics.write({"step": step})
    assert read_metrics(path) == [{"step": 2}]


def test_a_run_that_goes_on_keeps_the_first_rows_byte_for_byte_and_drops_the_others(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step":  1}\n{"step": 2}\n{"ste')
    with MetricsFile(path, keep=2) as metrics:
        metrics.write({"step": 2, "again": True})
    assert path.read_text() == '{"step": 0}\n{"step":  1}\n{"step": 2, "again": true}\n'


def test_rows_that_are_not_there_cannot_be_kept(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"ste')
    with pytest.raises(ValueError, match="has 1 rows, of which 2 were to be kept"):
        MetricsFile(path, keep=2)
    assert path.read_text() == '{"step": 0}\n{"ste'


def test_the_figures_of_a_row_are_its_numbers_with_nested_ones_by_path():
    row = {
        "step": 3,
        "accuracy": None,
        "accuracy_interval": [0.1, 0.2],
        "seconds": {"sampling": 1.5},
        "run": "rl",
    }
    assert figures(row) == {
        "step": 3,
        "accuracy_interval/0": 0.1,
        "accuracy_interval/1": 0.2,
        "seconds/sampling": 1.5,
    }


def test_what_json_cannot_hold_can_be_replaced_wherever_it_is():
    row = {"loss": float("nan"), "kl_by_position": {"0": float("inf"), "1": 0.5}, "pair": (1, float("-inf"))}
    assert without_not_finite(row) == {
        "loss": None,
        "kl_by_position": {"0": None, "1": 0.5},
        "pair": [1, None],
    }
