"""The frame of the experiments: every one runs at its smoke size, and pages say what result files say."""

import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cookbook.experiments import all_experiments
from cookbook.experiments.base_models import made_models
from cookbook.experiments.command import main, run_seed
from cookbook.experiments.experiment import Bench, Experiment, Result
from cookbook.experiments.pages import (
    DIGEST,
    RESULTS_PAGE,
    SHOWN_SIZES,
    digest,
    made_on,
    readme_block,
    results_page,
    shown_block,
    write_figure,
)
from cookbook.experiments.results import (
    changed_since,
    check_one_setting,
    load_results,
    result_file,
    writing,
)
from cookbook.experiments.statistics import estimate, estimate_ratio, is_more, is_no_loss, percent, reaches
from cookbook.file_lock import locked
from cookbook.guards import RunStopped
from tinkerlite import ServiceClient

ROOT = Path(__file__).parent.parent.parent
EXPERIMENTS = all_experiments()
by_name = pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)


@by_name
def test_the_smoke_size_of_every_experiment_runs_and_yields_tables_bars_and_a_figure(
    experiment: Experiment[Any], tmp_path: Path
):
    models = made_models(experiment.models(experiment.sizes["smoke"]), tmp_path / "models")
    console = Console(file=io.StringIO())
    with ServiceClient(base_url=f"local://{','.join(models)}") as service:
        run_seed(experiment, "smoke", 0, service, models, tmp_path, console)
    results = load_results(experiment, "smoke", tmp_path)
    assert [result.seed for result in results] == [0]
    assert experiment.tables(results).startswith("|")
    assert experiment.bars(results)
    assert write_figure(experiment, results, tmp_path).stat().st_size > 1000


@by_name
def test_every_experiment_has_a_readme_with_its_parts_and_the_tables_of_its_results(
    experiment: Experiment[Any],
):
    text = (experiment.folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {experiment.number}: ")
    for part in (
        "**Claim.**",
        "**Set-up.**",
        "**Command.**",
        "**What you should see.**",
        "## Where it differs",
    ):
        assert part in text, f"{experiment.name}: no {part}"
    assert f"python -m cookbook.experiments.{experiment.name} --size small" in text
    assert shown_block(experiment) == readme_block(experiment), "run `python -m cookbook.experiments pages`"


@by_name
def test_every_figure_was_made_from_the_results_beside_it(experiment: Experiment[Any]):
    for size in SHOWN_SIZES:
        figure = experiment.folder / f"figure-{size}.png"
        results = load_results(experiment, size) if size in experiment.sizes else []
        assert figure.exists() == bool(results)
        if results:
            with Image.open(figure) as image:
                assert image.info[DIGEST] == digest(results), "run `python -m cookbook.experiments pages`"


def test_the_results_page_is_made_from_the_committed_results():
    assert RESULTS_PAGE.read_text(encoding="utf-8") == results_page(), (
        "run `python -m cookbook.experiments pages`"
    )


def test_the_list_names_every_experiment():
    listed = subprocess.run(
        [sys.executable, "-m", "cookbook.experiments"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    for experiment in EXPERIMENTS:
        assert experiment.number in listed


def test_the_command_starts_a_server_runs_its_seeds_and_says_where_everything_is(tmp_path: Path):
    command = [sys.executable, "-m", "cookbook.experiments.rl_teacher", "--size", "smoke", "--seeds", "3"]
    ended = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    [result] = load_results(experiment_named("rl_teacher"), "smoke", tmp_path)
    assert result.seed == 3
    assert result.header["command"] == "python -m cookbook.experiments.rl_teacher --size smoke --seeds 3"
    assert result.header["dtype"] == "float32"  # tests pin it
    assert (tmp_path / "figure-smoke.png").exists()
    assert "figure-smoke.png" in ended.stdout.replace("\n", "")


def test_a_tracker_is_shown_every_run_of_an_experiment_under_a_name_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    experiment = experiment_named("rl_teacher")
    models = made_models(experiment.models(experiment.sizes["smoke"]), tmp_path / "models")
    with ServiceClient(base_url=f"local://{','.join(models)}") as service:
        run_seed(
            experiment, "smoke", 2, service, models, tmp_path, Console(file=io.StringIO()), ["tensorboard"]
        )
    [result] = load_results(experiment, "smoke", tmp_path)
    shown = [file.parent.parent.name for file in tmp_path.glob("runs/experiments/rl_teacher/*/tensorboard/*")]
    steps = [run for run in result.runs if run != "shapes"]  # which has figures of no step
    assert sorted(name.rsplit("-", 1)[0] for name in shown) == sorted(
        f"rl_teacher-{run}-smoke-seed-2" for run in steps
    )


def test_a_seed_that_a_guard_stops_leaves_the_others(
    tmp_path: Path, student_folder: Path, capsys: pytest.CaptureFixture[str]
):
    experiment = experiment_named("rl_teacher")

    def run(bench: Bench, setting: Any) -> None:
        bench.note("rl", step=0)
        if bench.seed == 1:
            raise RunStopped("step 0: the loss is on fire.")
        experiment.run(bench, setting)

    flags = ["--size", "smoke", "--seeds", "1", "2", "--out", str(tmp_path)]
    stopping = replace(experiment, run=run, models=lambda setting: [str(student_folder)])
    assert main(stopping, [*flags, "--base-url", f"local://{student_folder}"]) == 1
    said = capsys.readouterr().out.replace("\n", "")
    assert "seed 1 stopped at step 0: the loss is on fire." in said
    assert [result.seed for result in load_results(experiment, "smoke", tmp_path)] == [2]


def test_two_processes_do_not_write_one_seed(
    tmp_path: Path, student_folder: Path, capsys: pytest.CaptureFixture[str]
):
    experiment = replace(
        experiment_named("rl_teacher"),
        run=lambda bench, setting: bench.note("rl", step=0),
        models=lambda setting: [str(student_folder)],
    )
    flags = ["--size", "smoke", "--seeds", "1", "--out", str(tmp_path)]
    with locked(tmp_path / "smoke-seed-1.lock", "it"):
        assert main(experiment, [*flags, "--base-url", f"local://{student_folder}"]) == 1
    assert f"another process is at work on seed 1 of size smoke in {tmp_path}" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.part"))


def test_a_size_that_makes_its_models_is_not_for_a_server_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = ["--size", "smoke", "--out", str(tmp_path), "--base-url", "http://127.0.0.1:9"]
    assert main(experiment_named("rl_teacher"), flags) == 2
    assert "the smoke size makes models of its own, which no server at http://127.0.0.1:9 has" in (
        capsys.readouterr().out
    )
    assert not list(tmp_path.iterdir())


# ---- result files ----


def experiment_named(name: str) -> Experiment[Any]:
    return next(experiment for experiment in EXPERIMENTS if experiment.name == name)


def test_results_are_in_place_only_once_they_are_complete(tmp_path: Path):
    experiment = experiment_named("rl_teacher")

    def write(value: int, *, fail: bool) -> None:
        with writing(experiment, "smoke", 0, tmp_path) as metrics:
            metrics.write({"run": "rl", "value": value})
            if fail:
                raise KeyboardInterrupt

    write(1, fail=False)
    with pytest.raises(KeyboardInterrupt):
        write(2, fail=True)
    [result] = load_results(experiment, "smoke", tmp_path)
    assert [row["value"] for row in result.of("rl")] == [1]
    assert result.header["setting"]["rank"] == 4
    assert result.header["seconds"] >= 0
    assert result_file(tmp_path, "smoke", 0).with_suffix(".part").exists()


def test_a_page_says_which_settings_have_changed_since_its_results(tmp_path: Path):
    experiment = experiment_named("rl_teacher")
    with writing(experiment, "smoke", 0, tmp_path):
        pass
    [result] = load_results(experiment, "smoke", tmp_path)
    assert changed_since(experiment, result) == []
    now = experiment.sizes["smoke"]
    changed = replace(now, rank=now.rank + 1, opd=replace(now.opd, learning_rate=0.5))
    assert changed_since(replace(experiment, sizes={"smoke": changed}), result) == [
        f"`rank` {now.rank}, now {now.rank + 1}",
        f"`opd.learning_rate` {now.opd.learning_rate}, now 0.5",
    ]


def test_a_page_says_where_each_seed_was_made():
    def result(seed: int, minutes: float, hardware: str, **more: str) -> Result:
        return Result(seed=seed, header={"hardware": hardware, "seconds": 60 * minutes, **more}, rows=[])

    old, new = result(0, 5, "2 cores of A"), result(1, 10, "2 cores of B", dtype="float32")
    assert made_on([old, new, result(2, 20, "2 cores of B", dtype="float32")]) == (
        "seed 0, 5.0 minutes on 2 cores of A; seeds 1 2, 15.0 minutes each on 2 cores of B, float32"
    )


def test_seeds_of_different_settings_are_not_averaged():
    one = Result(seed=0, header={"experiment": "E4", "setting": {"rank": 4}}, rows=[])
    check_one_setting([one, replace(one, seed=1)])
    with pytest.raises(ValueError, match="seeds 0 and 1 of E4 were run with different settings"):
        check_one_setting([one, replace(one, seed=1, header={"experiment": "E4", "setting": {"rank": 8}})])
    newer = {"experiment": "E4", "setting": {"rank": 4, "new": 1}}
    check_one_setting([one, replace(one, seed=1, header=newer)])


def test_seeds_are_not_run_beside_one_of_other_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    experiment = experiment_named("rl_teacher")
    with writing(experiment, "smoke", 0, tmp_path):
        pass
    now = experiment.sizes["smoke"]
    changed = replace(experiment, sizes={"smoke": replace(now, rank=now.rank + 1)}, models=never)
    assert main(changed, ["--size", "smoke", "--seeds", "1", "--out", str(tmp_path)]) == 2
    said = " ".join(capsys.readouterr().out.split())  # lines break where the folder's name ends
    assert f"seed 0 in {tmp_path} was run with other settings: `rank` {now.rank}, now {now.rank + 1}." in said
    assert "--seeds 0 ..." in said


def test_a_run_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(KeyError, match=r"no run 'sft' in these results; there are \['opd', 'rl'\]"):
        Result(seed=0, header={}, rows=[{"run": "rl"}, {"run": "opd"}]).of("sft")


def test_an_experiment_without_results_is_shown_as_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    experiment = replace(experiment_named("rl_teacher"), name="nowhere", bars=never)
    monkeypatch.setattr("cookbook.experiments.pages.all_experiments", lambda: [experiment])
    page = results_page()
    assert re.search(r"\| \[E4\]\(#e4-[\w-]+\) \| RL makes a teacher.* \| not run yet \| \|", page)
    assert (
        "**Small**: not run yet (`python -m cookbook.experiments.nowhere --size small --seeds 0 1 2`)."
        in page
    )


def never(*_: Any) -> Any:
    raise AssertionError("there is nothing to do")


# ---- estimates ----


def test_noise_is_no_evidence_that_nothing_was_lost():
    assert is_no_loss(estimate([0.01, 0.0, -0.01])) is True
    assert is_no_loss(estimate([-0.03, -0.031, -0.029])) is True
    assert is_no_loss(estimate([-0.2, -0.21, -0.19])) is False
    assert is_no_loss(estimate([0.2, -0.2, 0.0])) is None
    assert is_no_loss(estimate([0.2])) is None


def test_a_bar_is_reached_or_missed_by_a_whole_interval_and_open_in_between():
    assert reaches(estimate([0.95, 0.96, 0.94]), 0.9) is True
    assert reaches(estimate([0.85, 0.86, 0.84]), 0.9) is False
    assert reaches(estimate([0.95, 0.80, 0.99]), 0.9) is None
    assert reaches(estimate([0.95]), 0.9) is None
    assert is_more(estimate([0.3, 0.31, 0.29])) is True
    assert is_more(estimate([-0.3, -0.31, -0.29])) is False
    assert is_more(estimate([0.0, 0.0])) is is_more(estimate([0.3])) is None


def test_ratios_have_a_geometric_mean():
    ratio = estimate_ratio([2.0, 8.0])
    assert ratio.mean == pytest.approx(4.0)
    assert estimate_ratio([4.0]).text == "4.0x"
    assert estimate_ratio([4.0, 4.0, 4.0]).text == "4.0x (4.0x to 4.0x)"
    assert estimate_ratio([3.0, 3.0, 25.0]).mean < 9
    assert estimate_ratio([10.0, 10.5, 11.0]).reaches(9.0) is True


def test_an_estimate_has_the_interval_of_students_t():
    three = estimate([1.0, 2.0, 3.0])
    assert three.mean == 2.0
    assert three.half == pytest.approx(4.303 / np.sqrt(3), rel=1e-3)
    assert estimate([0.5]).text(percent) == "50.0%"
    assert estimate([0.5, 0.5]).text(percent) == "50.0% ± 0.0%"
    assert estimate([1.0, 3.0]).text("{:+.1f}".format) == "+2.0 ± 12.7"
    with pytest.raises(ValueError):
        estimate([])
