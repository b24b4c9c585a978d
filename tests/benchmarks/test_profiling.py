"""Profiles: what a row does is found, whichever thread does it."""

from pathlib import Path

import pytest

from benchmarks.import_profile import profile_imports
from benchmarks.profile_table import Part, Profile
from benchmarks.profiling import PROFILED, main, profile_row
from benchmarks.work import Job


@pytest.mark.parametrize("row", ["score", "train"])
def test_a_row_becomes_a_table_of_what_torch_did(row: str, student_folder: Path, tmp_path: Path):
    assert main([row, "--model", str(student_folder), "--output", str(tmp_path)]) == 0
    [file] = tmp_path.glob("*-profile.md")
    text = file.read_text(encoding="utf-8")
    assert f"{student_folder}, float32" in text
    assert "| `aten::mm` |" in text
    assert "| on the clock |" in text


@pytest.mark.parametrize(
    ("row", "packages"),
    [("import", ["tinkerlite.types"]), ("cold-start", ["torch._C", "tinkerlite_server.engine"])],
)
def test_a_start_becomes_a_table_of_what_was_imported(row: str, packages: list[str], student_folder: Path):
    timed = next(each for each in PROFILED if each.key == row)
    job = Job(function=timed.ours, model=str(student_folder), work=timed.quick, vocab_size=0, base_url="")
    profile = profile_row(timed, job)
    assert profile.kind == "package"
    assert {part.name for part in profile.parts}.issuperset(packages)
    assert sum(part.seconds for part in profile.parts) < profile.seconds


def test_an_interpreter_that_fails_is_no_profile():
    with pytest.raises(RuntimeError, match="ended with 3: no such thing"):
        profile_imports("import sys; print('no such thing', file=sys.stderr); sys.exit(3)")


def test_what_parts_leave_of_the_clock_is_outside_of_them():
    operations = tuple(Part(name=f"op {n}", calls=2, seconds=0.01) for n in range(20))
    lines = Profile(kind="operation", seconds=0.4, parts=operations).table().splitlines()
    assert lines[-3:] == [
        "| 6 others | 12 | 60.0 | 15% |",
        "| outside of any operation |  | 200.0 | 50% |",
        "| on the clock |  | 400.0 | 100% |",
    ]
