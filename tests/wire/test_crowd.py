"""Several tenants at once over real HTTP: each gets what it would get alone, whatever befalls the others."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI

import tinkerlite
from cookbook.server_process import free_port
from tests.client.scripted_server import eventually
from tests.server.http_server import http_server
from tests.server.server_process import server_process
from tests.wire import tenant
from tinkerlite import errors
from tinkerlite_server.app import create_app
from tinkerlite_server.auth import owner_of
from tinkerlite_server.engine.catalog import build_catalog
from tinkerlite_server.engine.local_engine import LocalEngine
from tinkerlite_server.engine.protocols import EngineLimits
from tinkerlite_server.settings import Limits, Settings

SEEDS = (100, 200, 300)
STEPS, SAMPLES = 4, 20
SILENCE_SECONDS = 3.0

Results = dict[str, list[Any]]


@pytest.fixture(scope="module")
def app(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    limits = Limits(session_seconds=SILENCE_SECONDS, sweep_seconds=0.2)
    settings = Settings(data_dir=tmp_path_factory.mktemp("crowd"), limits=limits)
    engine_limits = EngineLimits(dtype="float32")
    return create_app(
        settings, LocalEngine(build_catalog([str(student_folder)], engine_limits), engine_limits)
    )


@pytest.fixture(scope="module")
def url(app: FastAPI) -> Iterator[str]:
    with http_server(app) as running:
        yield running


@pytest.fixture(scope="module")
def alone(url: str, student_folder: Path) -> dict[int, Results]:
    """What each tenant gets on a server that it has for itself."""
    return {seed: tenant.work(url, "tml-alone", str(student_folder), seed, STEPS, SAMPLES) for seed in SEEDS}


class Process:
    """A tenant as a process of its own."""

    def __init__(self, url: str, base_model: Path, seed: int, steps: int = STEPS) -> None:
        self.key = f"tml-{seed}"
        arguments = [url, self.key, str(base_model), str(seed), str(steps), str(SAMPLES)]
        self._process = subprocess.Popen(
            [sys.executable, tenant.__file__, *arguments], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self._said = self._process.stdout

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._said.close()

    def hear(self, word: str) -> str:
        """What it says after this word, once it does."""
        for line in self._said:
            if line.startswith(word):
                return line.removeprefix(word).strip()
        raise AssertionError(f"the tenant ended without a word of {word!r}")

    def results(self) -> Results:
        said = json.loads("{" + self.hear("{"))
        assert self._process.wait(30) == 0
        return said

    def kill(self) -> None:
        """As kill -9 does: without a farewell."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


def assert_same(got: Results, expected: Results) -> None:
    assert got["tokens"] == expected["tokens"]
    for name in ("logprobs", "sampled"):
        np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=1e-5)


def test_three_tenants_that_train_and_sample_at_once_get_what_each_gets_alone(
    url: str, student_folder: Path, alone: dict[int, Results]
):
    with ExitStack() as stack:
        processes = [stack.enter_context(Process(url, student_folder, seed)) for seed in SEEDS]
        for seed, process in zip(SEEDS, processes, strict=True):
            assert_same(process.results(), alone[seed])


def test_two_hundred_samples_at_once_are_those_drawn_one_by_one_and_none_is_lost(
    url: str, student_folder: Path
):
    rng = np.random.default_rng(0)
    prompts = [tenant.prompt(rng) for _ in range(200)]
    with ExitStack() as stack:
        samplers = [
            stack.enter_context(
                tinkerlite.ServiceClient(base_url=url, api_key=f"tml-{key}")
            ).create_sampling_client(base_model=str(student_folder))
            for key in range(4)
        ]
        with ThreadPoolExecutor(4) as pool:
            groups = [prompts[first : first + 50] for first in range(0, 200, 50)]
            together = list(chain.from_iterable(pool.map(tenant.sample, samplers, groups, range(0, 200, 50))))
        one_by_one = [tenant.sample(samplers[0], [each], seed)[0] for seed, each in enumerate(prompts)]
    assert [each.tokens for each in together] == [each.tokens for each in one_by_one]
    for ours, expected in zip(together, one_by_one, strict=True):
        np.testing.assert_allclose(ours.logprobs_np, expected.logprobs_np, rtol=0, atol=1e-5)


def test_a_tenant_that_is_killed_leaves_the_others_whole_and_its_session_ends_after_its_silence(
    app: FastAPI, url: str, student_folder: Path, alone: dict[int, Results]
):
    store = app.state.service.store
    with (
        Process(url, student_folder, seed=400, steps=10_000) as victim,
        Process(url, student_folder, SEEDS[0]) as first,
        Process(url, student_folder, SEEDS[1]) as second,
    ):
        run = victim.hear("run")
        victim.hear("step 2")
        victim.kill()
        assert not store.run(run, owner_of(victim.key)).ended
        assert_same(first.results(), alone[SEEDS[0]])
        assert_same(second.results(), alone[SEEDS[1]])
    assert eventually(lambda: bool(store.run(run, owner_of(victim.key)).ended))
    assert "no sign of life" in store.run(run, owner_of(victim.key)).ended


def test_after_a_server_was_killed_and_restarted_its_client_is_told_and_goes_on_from_a_checkpoint(
    student_folder: Path, tmp_path: Path
):
    command = ("--model", str(student_folder), "--dtype", "float32", "--data-dir", str(tmp_path))
    command += ("--port", str(free_port()))
    rng = np.random.default_rng(0)
    first, second, third = (tenant.lessons(rng) for _ in range(3))
    with ExitStack() as stack:
        with server_process(*command) as (running, url):
            config = tinkerlite.ClientConfig(first_backoff_seconds=0.1)
            service = stack.enter_context(tinkerlite.ServiceClient(base_url=url, config=config))
            training = service.create_lora_training_client(str(student_folder), rank=4, seed=0)
            base = service.create_sampling_client(base_model=str(student_folder))
            tenant.update(training, first)
            path = training.save_state("one").result().path
            expected = tenant.update(training, second), tenant.update(training, third)
            long = tinkerlite.SamplingParams(max_tokens=400, seed=1, stop=[])
            sampled_on = training.save_weights_and_get_sampling_client()
            ours, theirs = (each.sample(tenant.prompt(rng), 64, long) for each in (sampled_on, base))
            running.kill()
        with server_process(*command):
            with pytest.raises(errors.NotFoundError, match=f"restarted.*{path}"):
                tenant.update(training, first)
            with pytest.raises(errors.NotFoundError, match="restarted"):
                ours.result()
            assert len(theirs.result().sequences) == 64, "a base model is as it was, so it was asked again"
            resumed = service.create_training_client_from_state_with_optimizer(path)
            for batch, losses in zip((second, third), expected, strict=True):
                np.testing.assert_allclose(tenant.update(resumed, batch), losses, rtol=0, atol=1e-5)
