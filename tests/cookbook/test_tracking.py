"""Trackers, through their own libraries: what they hold is read back with the same library."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cookbook import sft
from cookbook.metrics import Row, read_metrics
from cookbook.tracking import TrackedRun, WeightsAndBiases, check_trackers, open_trackers

ROWS: list[Row] = [
    {"run": "opd", "step": k, "reverse_kl": 2.0 - k, "accuracy": None, "kl_by_position": {"2-3": 0.5 + k}}
    for k in range(4)
]


def tracked(folder: Path, first_step: int = 0) -> TrackedRun:
    return TrackedRun(name="opd-1a2b", folder=folder, settings={"rank": 4}, first_step=first_step)


def log(name: str, run: TrackedRun, rows: list[Row]) -> None:
    with open_trackers([name], run) as [tracker]:
        for row in rows:
            tracker.log(row)


def test_an_unknown_tracker_is_answered_with_those_that_exist():
    with pytest.raises(SystemExit, match="unknown tracker 'pigeons'; choose one of tensorboard, wandb"):
        check_trackers(["pigeons"])


def test_a_library_that_is_missing_is_answered_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    def nothing(name: str) -> None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", nothing)
    with pytest.raises(SystemExit, match="--track wandb needs its library: pip install wandb"):
        check_trackers(["wandb"])


def test_tensorboard_reads_every_number_at_its_step(tmp_path: Path):
    pytest.importorskip("tensorboard")
    log("tensorboard", tracked(tmp_path), ROWS)
    assert scalars(tmp_path)["reverse_kl"] == [(0, 2.0), (1, 1.0), (2, 0.0), (3, -1.0)]
    assert scalars(tmp_path)["kl_by_position/2-3"] == [(0, 0.5), (1, 1.5), (2, 2.5), (3, 3.5)]
    assert scalars(tmp_path).keys() == {"reverse_kl", "kl_by_position/2-3"}


def test_tensorboard_drops_what_the_killed_process_logged_after_its_checkpoint(tmp_path: Path):
    pytest.importorskip("tensorboard")
    log("tensorboard", tracked(tmp_path), ROWS)
    log("tensorboard", tracked(tmp_path, first_step=2), [{"step": 2, "reverse_kl": 7.0}])
    assert scalars(tmp_path)["reverse_kl"] == [(0, 2.0), (1, 1.0), (2, 7.0)]


def test_a_recipe_shows_tensorboard_the_figures_that_it_writes(tiny_folder: Path, tmp_path: Path):
    pytest.importorskip("tensorboard")
    small = ["--model", str(tiny_folder), "--rank", "4", "--steps", "2", "--held-out", "1"]
    sft.main(
        ["--base-url", f"local://{tiny_folder}", "--out", str(tmp_path), *small, "--track", "tensorboard"]
    )
    written = [
        (row["step"], pytest.approx(row["loss_per_token"]))
        for row in read_metrics(tmp_path / "metrics.jsonl")[:-1]
    ]
    assert scalars(tmp_path)["loss_per_token"] == written


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_weights_and_biases_keeps_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with open_trackers(["wandb"], tracked(tmp_path)) as [tracker]:
        assert isinstance(tracker, WeightsAndBiases)
        for row in ROWS:
            tracker.log(row)
        seen = tracker.run.summary
        assert (seen["_step"], seen["reverse_kl"], seen["kl_by_position/2-3"]) == (3, -1.0, 3.5)
        assert dict(tracker.run.config) == {"rank": 4}
    [file] = (tmp_path / "wandb").glob("offline-run-*/run-opd-1a2b.wandb")
    deadline = time.monotonic() + 20
    # Its own process writes, and goes on for a moment after the run is finished.
    while file.read_bytes().count(b"kl_by_position/2-3") < len(ROWS):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_weights_and_biases_without_a_key_says_how_to_go_on(tmp_path: Path):
    pytest.importorskip("wandb")
    script = (
        "import sys; from tests.cookbook.test_tracking import *\n"
        "log('wandb', tracked(Path(sys.argv[1])), ROWS)\n"
    )
    ended = in_a_process_of_its_own(script, tmp_path)
    assert ended.returncode == 1
    assert "set WANDB_MODE=offline to keep the run on this machine" in " ".join(ended.stderr.split())


def test_trackio_keeps_a_run_on_this_machine_and_goes_on_with_it(tmp_path: Path):
    pytest.importorskip("trackio")
    script = (
        "import sys; from tests.cookbook.test_tracking import *\n"
        "log('trackio', tracked(Path(sys.argv[1])), ROWS)\n"
        "log('trackio', tracked(Path(sys.argv[1]), first_step=4), [{'step': 4, 'reverse_kl': 9.0}])\n"
        "from trackio.cli import main\n"
        "sys.argv = ['trackio', 'get', 'metric', '--project', 'tinkerlite', '--run', 'opd-1a2b',\n"
        "            '--metric', 'reverse_kl', '--json']\n"
        "main()\n"
    )
    ended = in_a_process_of_its_own(script, tmp_path)
    assert ended.returncode == 0, ended.stderr
    values = json.JSONDecoder().raw_decode(ended.stdout[ended.stdout.index("{") :])[0]["values"]
    assert [(v["step"], v["value"]) for v in values] == [(0, 2.0), (1, 1.0), (2, 0.0), (3, -1.0), (4, 9.0)]


def in_a_process_of_its_own(script: str, home: Path) -> subprocess.CompletedProcess[str]:
    """These libraries settle what is whose, and where, for the whole process."""
    return subprocess.run(
        [sys.executable, "-c", script, str(home)],
        env={"TRACKIO_DIR": str(home), "PYTHONPATH": ":".join(sys.path), "HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
