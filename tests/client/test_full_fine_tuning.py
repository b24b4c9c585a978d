"""Full fine-tuning through the client, on the real server in this process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import tinkerlite
from tests.server.served import Caller, serving
from tinkerlite.types import AdamParams, Datum, ModelInput, SamplingParams
from tinkerlite_server.engine.catalog import build_catalog
from tinkerlite_server.engine.local_engine import LocalEngine
from tinkerlite_server.engine.protocols import EngineLimits

TEXT = [40, 41, 42, 43, 44, 45, 46, 47, 48, 49]
STEP = AdamParams(learning_rate=1e-3)


def datum(tokens: list[int]) -> Datum:
    weights = [1.0] * (len(tokens) - 1)
    return Datum(ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:], "weights": weights})


def train(training: tinkerlite.TrainingClient, steps: int) -> list[float]:
    """The loss before each step."""
    losses = []
    for _ in range(steps):
        output = training.forward_backward([datum(TEXT)], "cross_entropy")
        training.optim_step(STEP)
        losses.append(output.result().metrics["loss:sum"])
    return losses


def seen(sampler: tinkerlite.SamplingClient) -> np.ndarray:
    return np.array(sampler.compute_logprobs(ModelInput.from_ints(TEXT)).result()[1:])


@pytest.fixture(scope="module")
def training(local_service: tinkerlite.ServiceClient, student_folder: Path) -> tinkerlite.TrainingClient:
    made = local_service.create_training_client(str(student_folder), user_metadata={"of": "all weights"})
    losses = train(made, 5)
    assert losses[-1] < 0.8 * losses[0]
    return made


def test_a_run_says_that_it_trains_all_weights(
    local_service: tinkerlite.ServiceClient, training: tinkerlite.TrainingClient
):
    info = training.get_info()
    assert (info.is_lora, info.lora_rank) == (False, None)
    run = local_service.create_rest_client().get_training_run(training.model_id).result()
    assert (run.is_lora, run.lora_rank, run.user_metadata) == (False, None, {"of": "all weights"})


def test_samples_and_scores_are_those_of_the_trainer_and_not_of_the_base_model(
    local_service: tinkerlite.ServiceClient, training: tinkerlite.TrainingClient, student_folder: Path
):
    sampler = training.save_weights_and_get_sampling_client()
    drawn = sampler.sample(ModelInput.from_ints(TEXT[:4]), 1, SamplingParams(max_tokens=8, stop=[])).result()
    completion = drawn.sequences[0]
    whole = TEXT[:4] + completion.tokens
    trained = training.forward([datum(whole)], "cross_entropy").result()
    logprobs = trained.loss_fn_outputs[0]["logprobs"].to_numpy()
    np.testing.assert_allclose(completion.logprobs_np, logprobs[3:], atol=1e-4)
    base = local_service.create_sampling_client(base_model=str(student_folder))
    assert seen(sampler).mean() > seen(base).mean() + 0.1


def test_saved_weights_sample_resume_and_copy_as_an_adapters_do(
    local_service: tinkerlite.ServiceClient, training: tinkerlite.TrainingClient
):
    rest = local_service.create_rest_client()
    now = seen(training.save_weights_and_get_sampling_client())
    named = training.save_weights_for_sampler("teacher").result().path
    assert named is not None
    np.testing.assert_allclose(seen(local_service.create_sampling_client(model_path=named)), now, atol=1e-5)
    copy = rest.copy_weights(named, "a project").result()
    np.testing.assert_allclose(seen(local_service.create_sampling_client(model_path=copy)), now, atol=1e-5)

    state = training.save_state("middle").result().path
    info = rest.get_weights_info_by_tinker_path(state).result()
    assert (info.is_lora, info.lora_rank) == (False, None)
    resumed = local_service.create_training_client_from_state_with_optimizer(state)
    assert resumed.get_info().is_lora is False
    assert train(training, 3) == train(resumed, 3)
    training.load_state(state).result()
    np.testing.assert_allclose(seen(training.save_weights_and_get_sampling_client()), now, atol=1e-5)
    rest.delete_checkpoint_from_tinker_path(named).result()
    with pytest.raises(tinkerlite.APIStatusError, match="there is no checkpoint"):
        local_service.create_sampling_client(model_path=named)


@pytest.mark.parametrize("kind", ["external_weights", "sampler_weights", "weights"])
def test_a_download_is_a_folder_that_transformers_loads(
    local_service: tinkerlite.ServiceClient,
    training: tinkerlite.TrainingClient,
    tmp_path: Path,
    kind: str,
):
    save = {
        "external_weights": training.save_weights_external,
        "sampler_weights": training.save_weights_for_sampler,
        "weights": training.save_state,
    }[kind]
    path = save("final").result().path
    assert path is not None
    folder = local_service.create_rest_client().download_checkpoint(path, tmp_path / "here").result()
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor(TEXT)
    with torch.no_grad():
        table = model(ids[None]).logits[0].log_softmax(-1)
    expected = table[:-1].gather(-1, ids[1:, None])[:, 0].numpy()
    np.testing.assert_allclose(seen(training.save_weights_and_get_sampling_client()), expected, atol=1e-4)
    assert (folder / "tokenizer.json").is_file()
    assert (folder / "optimizer.safetensors").exists() == (kind == "weights")
    if kind == "external_weights":
        assert "library_name: transformers" in (folder / "README.md").read_text()


@pytest.fixture
def small_engine(student_folder: Path) -> LocalEngine:
    limits = EngineLimits(max_full_bytes=1000)
    return LocalEngine(build_catalog([str(student_folder)], limits), limits)


def test_what_does_not_fit_fails_at_once_with_the_bytes_and_takes_nothing(
    small_engine: LocalEngine, student_folder: Path, tmp_path: Path
):
    with serving(small_engine, tmp_path) as served:
        caller = served.caller()
        body = {"session_id": caller.session(), "base_model": str(student_folder)}
        refused = caller.ok("/create_model", **body, model_seq_id=0)["request_id"]
        error, category = caller.failure(refused)
        assert "bytes, and 1,000 of the 1,000 that this server allows full fine-tuning (--full-gib)" in error
        assert category == "user"
        lora = caller.ok("/create_model", **body, model_seq_id=1, lora_config={"rank": 2})["request_id"]
        assert "model_id" in caller.result(lora)


def test_after_a_restart_saved_weights_sample_and_train_on(student_folder: Path, tmp_path: Path):
    def engine() -> LocalEngine:
        limits = EngineLimits()
        return LocalEngine(build_catalog([str(student_folder)], limits), limits)

    def scored(caller: Caller, sampler: str) -> object:
        return caller.sample(sampler, prompt_logprobs=True).prompt_logprobs

    with serving(engine(), tmp_path) as served:
        caller = served.caller()
        session = caller.session()
        body = {"session_id": session, "model_seq_id": 0, "base_model": str(student_folder)}
        model = caller.result(caller.ok("/create_model", **body)["request_id"])["model_id"]
        caller.forward_backward(model, 1)
        caller.result(caller.optim_step(model, 2, learning_rate=1e-2))
        path = caller.save(model, 3, "state")["path"]
        sampler = caller.sampler(session, 0, model_path=path)
        before = scored(caller, sampler)
    with serving(engine(), tmp_path) as served:
        caller = served.caller()
        assert scored(caller, sampler) == before
        load = caller.ok("/load_weights", session_id=session, model_seq_id=1, path=path, optimizer=True)
        resumed = caller.result(load["request_id"])["model_id"]
        assert caller.ok("/get_info", model_id=resumed)["is_lora"] is False
        assert caller.result(caller.optim_step(resumed, 1))["metrics"]["step"] == 2.0


def test_awaited_under_its_async_name_it_is_the_same(
    local_service: tinkerlite.ServiceClient, student_folder: Path
):
    made = asyncio.run(local_service.create_training_client_async(str(student_folder)))
    assert made.get_info().is_lora is False
