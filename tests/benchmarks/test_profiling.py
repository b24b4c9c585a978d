"""Profiles: what a row does is found, whichever thread does it."""

from pathlib import Path

import pytest

from benchmarks.profiling import Operation, Profile, main


@pytest.mark.parametrize("row", ["score", "train"])
def test_a_row_becomes_a_table_of_what_torch_did(row: str, student_folder: Path, tmp_path: Path):
    assert main([row, "--model", str(student_folder), "--output", str(tmp_path)]) == 0
    [file] = tmp_path.glob("*-profile.md")
    text = file.read_text(encoding="utf-8")
    assert f"{student_folder}, float32" in text
    assert "| `aten::mm` |" in text
    assert "| on the clock |" in text


def test_what_operations_leave_of_the_clock_is_between_them():
    operations = tuple(Operation(name=f"op {n}", calls=2, seconds=0.01) for n in range(20))
    lines = Profile(seconds=0.4, operations=operations).table().splitlines()
    assert lines[-3:] == [
        "| 6 other kinds | 12 | 60.0 | 15% |",
        "| between operations |  | 200.0 | 50% |",
        "| on the clock |  | 400.0 | 100% |",
    ]
