"""Measurements in processes of their own: what lasts, what fails, and what is said about it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import measure
from benchmarks.measure import Worker
from benchmarks.work import Job, Unavailable, Work


def job(name: str, **given) -> Job:
    return Job(function=f"tests.benchmarks.measured:{name}", model="", work=Work(), **given)


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def test_a_worker_keeps_its_process_from_one_job_to_the_next(worker: Worker):
    outcomes = [worker.run(job("jobs_here"), 60)["tokens_per_second"] for _ in range(3)]
    assert outcomes == [[1.0], [2.0], [3.0]]


def test_a_single_job_has_a_process_of_its_own():
    outcomes = [measure.run(job("jobs_here", repeats=2), 60)["tokens_per_second"] for _ in range(2)]
    assert outcomes == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("is_unavailable", "there is no memory for it"),
        ("lacks_a_package", "the package no_such_package is not installed"),
        ("fails", "failed: ValueError: 7 is too many"),
        ("no_such_function", "failed: AttributeError: .*no_such_function"),
    ],
)
def test_a_job_that_cannot_be_done_says_why_and_the_worker_goes_on(worker: Worker, name: str, reason: str):
    with pytest.raises(Unavailable, match=f"^{reason}"):
        worker.run(job(name), 60)
    assert worker.run(job("jobs_here"), 60)["tokens_per_second"] == [1.0]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dies", "failed: the last words"),
        ("is_killed", "its process was killed, most likely for want of memory"),
    ],
)
def test_after_a_process_has_died_the_next_job_gets_a_new_one(worker: Worker, name: str, reason: str):
    assert worker.run(job("jobs_here"), 60)["tokens_per_second"] == [1.0]
    with pytest.raises(Unavailable, match=f"^{reason}$"):
        worker.run(job(name), 60)
    assert worker.run(job("jobs_here"), 60)["tokens_per_second"] == [1.0]


def test_a_job_that_takes_too_long_is_interrupted_so_that_what_it_started_ends(
    worker: Worker, tmp_path: Path
):
    farewell = tmp_path / "farewell"
    with pytest.raises(Unavailable, match=r"^took longer than 2 s$"):
        worker.run(job("takes_forever", folder=str(farewell)), 2)
    assert farewell.read_text() == "ended in order"
    assert worker.run(job("jobs_here"), 60)["tokens_per_second"] == [1.0]
