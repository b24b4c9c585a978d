"""The demo at a small size, on a tiny random model that learns nothing: what it writes and prints."""

import io
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cookbook.demo import DemoConfig, run_demo
from cookbook.loop import TrainConfig
from cookbook.metrics import read_metrics
from cookbook.server_process import ServerDidNotStart, running_server
from cookbook.supervised import SupervisedConfig


@pytest.fixture(scope="module")
def demo(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """(folder, summary, what was printed)."""
    out = tmp_path_factory.mktemp("demo")
    student = TrainConfig(
        steps=2, prompts_per_step=2, group_size=2, max_tokens=4, evaluate_every=1, held_out=3
    )
    teacher = SupervisedConfig(steps=1, batch_size=2, held_out=3, max_tokens=4)
    config = DemoConfig(
        model=str(tiny_folder), rank=4, teacher=teacher, student=student, rl_kl_every=2, shown_problems=2
    )
    console = Console(file=io.StringIO(), width=200, highlight=False)
    summary = run_demo(config, out, f"local://{tiny_folder}", console)
    assert isinstance(console.file, io.StringIO)
    return out, summary, console.file.getvalue()


def test_the_summary_has_what_is_promised(demo: tuple[Path, dict[str, Any], str]):
    out, summary, _ = demo
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["seconds"] > 0
    assert summary["peak_rss_mib"] > 10
    for model in ("base", "teacher", "rl", "opd"):
        low, high = summary[model]["accuracy_interval"]
        assert low <= summary[model]["accuracy"] <= high
    for run in ("rl", "opd"):
        assert summary[run]["steps"] == 2
        assert summary[run]["tokens_per_second"] > 0
        assert {"kl_first", "kl_last", "steps_to_90_percent_of_teacher"} <= summary[run].keys()


def test_both_students_start_from_the_same_kl_and_use_as_many_rollouts(
    demo: tuple[Path, dict[str, Any], str],
):
    out, summary, _ = demo
    assert summary["rl"]["kl_first"] == pytest.approx(summary["opd"]["kl_first"], abs=1e-4)
    assert summary["rollouts"] == 2 * 2 * 2
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["run"] for row in rows] == ["teacher"] * 2 + ["rl"] * 3 + ["opd"] * 3


def test_the_report_shades_completions_of_the_three_models(demo: tuple[Path, dict[str, Any], str]):
    out, _, _ = demo
    rollouts = json.loads((out / "rollouts.json").read_text())
    assert [r["model"] for r in rollouts] == ["base", "base", "rl", "rl", "opd", "opd"]
    assert len({r["question"] for r in rollouts}) == 2
    assert "Where the teacher objects" in (out / "report.html").read_text()


def test_what_is_printed_tells_the_whole_story(demo: tuple[Path, dict[str, Any], str]):
    _, _, printed = demo
    for expected in (
        "1. The base model",
        "2. A teacher",
        "3. A student by RL",
        "the form of an answer",
        "4. A student by OPD",
        "OPD: reverse KL",
        "tokens/s",
        "Floating-point operations",
        "What to try next",
        "--teacher tinker://",
    ):
        assert expected in printed


def test_a_server_of_one_s_own_answers_inside_the_block_and_is_gone_after_it(
    tiny_folder: Path, tmp_path: Path
):
    with (
        suppress(KeyboardInterrupt),
        running_server([str(tiny_folder)], tmp_path / "data", tmp_path / "log") as url,
    ):
        with urllib.request.urlopen(f"{url}/api/v1/healthz", timeout=10) as answer:
            assert answer.status == 200
        raise KeyboardInterrupt
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(f"{url}/api/v1/healthz", timeout=10)


HOLDS_A_SERVER = """
import sys, time
from pathlib import Path
from cookbook.server_process import running_server
with running_server([sys.argv[1]], Path(sys.argv[2]), Path(sys.argv[3])) as url:
    print(url, flush=True)
    time.sleep(300)
"""


def is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/api/v1/healthz", timeout=10) as answer:
            return answer.status == 200
    except urllib.error.URLError:
        return False


def test_a_server_of_one_s_own_outlives_no_process_that_is_killed(tiny_folder: Path, tmp_path: Path):
    arguments = [str(tiny_folder), str(tmp_path / "data"), str(tmp_path / "log")]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS_A_SERVER, *arguments], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        url = holder.stdout.readline().strip()
        assert is_healthy(url)
        holder.kill()
    deadline = time.monotonic() + 60
    while is_healthy(url):
        assert time.monotonic() < deadline, "the server still answers"
        time.sleep(0.2)


def test_a_server_that_cannot_start_says_why(tmp_path: Path):
    missing = tmp_path / "no-such-model"
    with (
        pytest.raises(ServerDidNotStart, match="no-such-model"),
        running_server([str(missing)], tmp_path / "data", tmp_path / "log"),
    ):
        pass


def test_help_says_what_the_demo_does():
    ended = subprocess.run(
        [sys.executable, "-m", "cookbook.demo", "--help"], capture_output=True, text=True, check=True
    )
    assert "the same number of rollouts" in " ".join(ended.stdout.split())
    assert "--base-url" in ended.stdout
