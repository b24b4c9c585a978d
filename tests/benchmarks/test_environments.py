"""Environments of the alternatives, and who runs in which. None of the real ones is needed here."""

import io
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import environments
from benchmarks.__main__ import Bench
from benchmarks.environments import ENVIRONMENTS, Environment
from benchmarks.homes import HOMES, Home, Workers
from benchmarks.rows import ROWS, Row
from benchmarks.work import Job, Unavailable, Work

BARE = Environment(name="bare", borrows_torch=True)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Environments are made in a folder of the test, from the requirements in it."""
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    monkeypatch.setattr(environments, "_REQUIREMENTS", tmp_path)
    (tmp_path / "bare.txt").write_text("# nothing\n")
    return tmp_path


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_package_of_an_environment_is_pinned(name: str):
    lines = Path("benchmarks/requirements", f"{name}.txt").read_text().splitlines()
    packages = [line for line in lines if not line.startswith("#")]
    assert packages
    assert not [line for line in packages if line.count("==") != 1 or " " in line]
    assert ENVIRONMENTS[name].versions()


def test_an_environment_that_is_not_there_says_how_to_make_it(elsewhere: Path):
    with pytest.raises(Unavailable, match=r"no environment 'bare'; `make bench-envs` makes it"):
        BARE.python()


def test_an_environment_is_made_once_and_again_when_its_requirements_change(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(environments, "ENVIRONMENTS", {"bare": BARE})
    assert environments.main([]) == 0
    finds_ours = "import sys; assert sys.prefix != sys.base_prefix; import torch, numpy"
    subprocess.run([BARE.python(), "-I", "-c", finds_ours], check=True)

    (elsewhere / "bare.txt").write_text("# something else\n")
    with pytest.raises(Unavailable, match=r"'bare' is out of date; `make bench-envs` renews it"):
        BARE.python()


def test_an_environment_that_cannot_be_made_does_not_keep_others_from_it(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    (elsewhere / "absent.txt").write_text("no-such-package==1.0\n")
    made = {"absent": Environment(name="absent"), "bare": BARE}
    monkeypatch.setattr(environments, "ENVIRONMENTS", made)
    monkeypatch.setenv("PIP_ARGS", "--no-index")
    assert environments.main([]) == 1
    assert "environment 'absent' could not be made" in capfd.readouterr().out
    assert BARE.python()
    with pytest.raises(Unavailable):
        made["absent"].python()


# ---- homes ----


def test_everyone_who_needs_packages_of_their_own_has_a_home_that_provides_them():
    functions = {function for row in ROWS for function in row.alternatives.values()}
    modules = {function.partition(":")[0] for function in functions}
    provided = {module: HOMES.get(module, Home()) for module in modules}
    ours = {
        "benchmarks.ours",
        "benchmarks.clients",
        *(m for m in modules if m.endswith(("_peft", "_batching"))),
    }
    for module, home in provided.items():
        assert (home.environment or home.starts) is not None or module in ours


def test_a_job_whose_environment_is_missing_is_unavailable_before_anything_starts(elsewhere: Path):
    job = Job(function="benchmarks.alternatives.vllm_cpu:sample", model="", work=Work())
    with Workers() as workers, pytest.raises(Unavailable, match="no environment 'vllm'"):
        workers.run(job, 60)


def test_lasting_homes_keep_their_process_and_others_do_not(monkeypatch: pytest.MonkeyPatch):
    job = Job(function="tests.benchmarks.measured:jobs_here", model="", work=Work())
    with Workers() as workers:
        assert [workers.run(job, 60)["tokens_per_second"] for _ in range(2)] == [[1.0], [1.0]]
    monkeypatch.setattr("benchmarks.homes.HOMES", {"tests.benchmarks.measured": Home(lasting=True)})
    with Workers() as workers:
        assert [workers.run(job, 60)["tokens_per_second"] for _ in range(2)] == [[1.0], [2.0]]


def test_a_function_that_measures_its_processs_memory_has_one_of_its_own(monkeypatch: pytest.MonkeyPatch):
    home = Home(lasting_if_quick=True, alone=("jobs_here",))
    monkeypatch.setattr("benchmarks.homes.HOMES", {"tests.benchmarks.measured": home})
    job = Job(function="tests.benchmarks.measured:jobs_here", model="", work=Work(), quick=True)
    also = replace(job, function="tests.benchmarks.measured:jobs_here_too")
    with Workers() as workers:
        assert [workers.run(job, 60)["tokens_per_second"] for _ in range(2)] == [[1.0], [1.0]]
        assert [workers.run(also, 60)["tokens_per_second"] for _ in range(2)] == [[1.0], [2.0]]
        slow = replace(also, quick=False)
        assert workers.run(slow, 60)["tokens_per_second"] == [1.0]


# ---- a row, measured ----

ROW = Row(
    key="row",
    title="{groups} groups",
    unit="tok/s",
    metric="tokens_per_second",
    work=Work(groups=4),
    quick=Work(groups=2),
    ours="tests.benchmarks.measured:sampled_tokens",
    alternatives={
        "another": "tests.benchmarks.measured:sampled_tokens",
        "vLLM": "benchmarks.alternatives.vllm_cpu:sample",
        "broken": "tests.benchmarks.measured:fails",
    },
)


def measured(quick: bool):
    with Workers() as workers:
        bench = Bench(
            Job(function="", model="", work=Work(), quick=quick), workers, Console(file=io.StringIO())
        )
        return bench.measure(ROW)


def test_everyone_in_a_row_has_a_number_or_a_reason(elsewhere: Path):
    result = measured(quick=False)
    assert (result.ours, result.alternatives) == (4.0, {"another": 4.0})
    assert result.skipped == {
        "vLLM": "no environment 'vllm'; `make bench-envs` makes it",
        "broken": "failed: ValueError: 7 is too many",
    }


def test_a_quick_run_is_smaller_and_says_that_vllm_goes_without_its_compiler(elsewhere: Path):
    result = measured(quick=True)
    assert (result.ours, result.name) == (2.0, "2 groups")
    assert set(result.skipped) == {"vLLM, eager", "broken"}
