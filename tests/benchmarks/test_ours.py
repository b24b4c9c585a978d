"""Our side of the rows, on a model that costs nothing: over HTTP and in process."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import ours
from benchmarks.work import Job, Work
from cookbook.server_process import running_server
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    scratch: Path = tmp_path_factory.mktemp("ours")
    folder = str(make_tiny_model(scratch / "model"))
    with running_server([folder], scratch / "data", scratch / "server.log") as url:
        yield Job(
            function="",
            model=folder,
            folder=folder,
            vocab_size=300,
            base_url=url,
            work=Work(groups=2, samples=2, prompt=5, tokens=4, turns=2, rank=4),
            repeats=2,
        )


@pytest.mark.parametrize(
    "name",
    [
        "sample",
        "sample_mixed",
        "sample_turns",
        "score",
        "score_unshared",
        "train_shared",
        "train_unshared",
        "rl_step",
        "opd_step",
        "weights_to_sampler",
        "request",
        "sample_in_process",
        "score_in_process",
        "train_in_process",
        "opd_step_in_process",
        "request_in_process",
    ],
)
def test_every_measurement_of_ours_runs(name: str, job: Job):
    [values] = getattr(ours, name)(job).values()
    assert len(values) == job.repeats
    assert all(value > 0 for value in values)


def test_what_surrounds_the_engine_is_what_is_left_of_a_request(job: Job):
    assert 0 < min(ours.request_overhead(job)["milliseconds"]) < 1000
