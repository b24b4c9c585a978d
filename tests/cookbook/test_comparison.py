import json
import re
from pathlib import Path
from typing import Any

import pytest

from cookbook import report
from cookbook.comparison import comparison_page, read_runs
from tests.cookbook.test_report import NASTY, Balance


def write_run(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if settings:
        (folder / "run.json").write_text(json.dumps({"recipe": "opd", "id": "1a2b", "settings": settings}))
    return folder


def rows(run: str, scale: float, **last: Any) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [
        {
            "run": run,
            "step": step,
            "reverse_kl": scale / (step + 1),
            "reverse_kl_interval": [scale / (step + 1) - 0.1, scale / (step + 1) + 0.1],
            "accuracy": None if step == 1 else 0.3 * step,
            "accuracy_interval": None if step == 1 else [0.0, 0.7],
            "seconds": {"sampling": 20.0, "training": 10.0},
        }
        for step in range(3)
    ]
    made[-1] |= last
    return made


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [
        write_run(tmp_path / "opd", rows("opd", 3.0), rank=4, task="sums", teacher=NASTY),
        write_run(tmp_path / "rl", rows("rl", 6.0, stopped="gone <wrong>"), rank=8, task="sums", teacher=""),
    ]


def test_both_curves_are_on_every_chart(folders: list[Path]):
    page = comparison_page(read_runs(folders))
    assert page.count("<svg") == 2
    assert page.count("<polyline") == 4
    assert page.count("<polygon") == 4  # all have intervals
    assert "opd, step 2: 60.0%" in page
    assert "rl, step 2: 2.000" in page
    assert "step 1: 30.0%" not in page  # that step was not evaluated


def test_the_table_has_the_last_figures_with_their_intervals(folders: list[Path]):
    page = comparison_page(read_runs(folders))
    assert '60.0% <span class="soft">[0.0%, 70.0%]</span>' in page
    assert '1.000 <span class="soft">[0.900, 1.100]</span>' in page
    assert "<td>Time of updates, minutes</td><td>1.5</td><td>1.5</td>" in page
    assert "gone &lt;wrong&gt;" in page


def test_only_settings_that_differ_are_shown_of_several_runs_and_all_of_one(folders: list[Path]):
    assert "<td>rank</td><td>4</td><td>8</td>" in comparison_page(read_runs(folders))
    assert "<td>task</td>" not in comparison_page(read_runs(folders))
    assert "<td>task</td><td>sums</td>" in comparison_page(read_runs(folders[:1]))


def test_the_page_is_balanced_escaped_and_needs_nothing_from_elsewhere(folders: list[Path]):
    page = comparison_page(read_runs(folders))
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert "<script" not in page
    assert not re.search(r"(src|href)=|url\(|@import|https?://", page)


def test_a_demo_has_several_runs_in_one_folder(tmp_path: Path):
    demo = write_run(tmp_path / "demo", [*rows("rl", 1.0), *rows("opd", 2.0)])
    assert [run.name for run in read_runs([demo])] == ["demo: rl", "demo: opd"]


def test_folders_of_one_name_are_told_apart_by_their_paths(tmp_path: Path):
    same = [write_run(tmp_path / seed / "opd", rows("opd", 1.0)) for seed in ("0", "1")]
    assert [run.name for run in read_runs(same)] == [str(folder) for folder in same]


def test_a_short_run_and_a_long_one_have_the_same_axis(tmp_path: Path):
    short = write_run(tmp_path / "short", rows("sft", 1.0)[:1])
    long = write_run(tmp_path / "long", rows("sft", 0.5))
    page = comparison_page(read_runs([short, long]))
    assert page.count(">2</text>") == page.count("<svg")  # where the steps end


def test_small_values_are_not_rounded_to_nothing(tmp_path: Path):
    exact = write_run(tmp_path / "exact", rows("opd", 1.0, logprob_difference_mean=1.04e-6))
    assert "<td>1.0e-06 " in comparison_page(read_runs([exact]))


def test_more_runs_than_colours_can_be_compared(tmp_path: Path):
    many = [write_run(tmp_path / f"run-{k}", rows("opd", 1.0 + k)) for k in range(11)]
    page = comparison_page(read_runs(many))
    assert "<h1>11 runs</h1>" in page
    assert page.count("<polyline") == 22


def test_a_folder_without_a_run_is_named(tmp_path: Path):
    with pytest.raises(SystemExit, match="it is not the folder of a run"):
        read_runs([tmp_path])


def test_the_command_writes_beside_the_first_run(folders: list[Path], capsys: pytest.CaptureFixture[str]):
    report.main([str(folder) for folder in folders])
    written = folders[0].parent / "comparison.html"
    assert capsys.readouterr().out.strip() == str(written)
    assert "<h1>opd and rl</h1>" in written.read_text()
