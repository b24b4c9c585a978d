"""ServiceClient: ways to the other clients, awaited or not, and its own end."""

from __future__ import annotations

import asyncio

import pytest
import tinker
from lessons import PROMPT, STEP, lesson
from methods import exercises, older_spelling
from tinker import RestClient, ServiceClient, types


@exercises(ServiceClient.create_lora_training_client, ServiceClient.create_lora_training_client_async)
def test_a_run_is_made_in_any_spelling(service: ServiceClient, base_model: str):
    async def awaited() -> tinker.TrainingClient:
        return await service.create_lora_training_client(base_model, rank=4)

    async def older() -> tinker.TrainingClient:
        return await service.create_lora_training_client_async(base_model, rank=4)

    runs = [service.create_lora_training_client(base_model, rank=4).result(), asyncio.run(awaited())]
    with older_spelling():
        runs.append(asyncio.run(older()))
    assert len({run.model_id for run in runs}) == 3
    assert [run.get_info().model_data.model_name for run in runs] == [base_model] * 3


def test_a_run_is_made_as_its_creator_says(service: ServiceClient, rest: RestClient, base_model: str):
    run = service.create_lora_training_client(
        base_model, rank=8, seed=3, train_mlp=False, train_unembed=False, user_metadata={"task": "tests"}
    ).result()
    info = run.get_info()
    assert (info.is_lora, info.lora_rank) == (True, 8)
    path = run.save_state("made").result().path
    saved = rest.get_weights_info_by_tinker_path(path).result()
    assert (saved.base_model, saved.lora_rank) == (base_model, 8)
    assert (saved.train_attn, saved.train_mlp, saved.train_unembed) == (True, False, False)
    assert rest.get_training_run(run.model_id).result().user_metadata == {"task": "tests"}


def test_a_run_of_one_seed_is_made_twice_alike_and_of_another_seed_otherwise(
    service: ServiceClient, base_model: str
):
    def after_a_step(seed: int) -> list[float]:
        run = service.create_lora_training_client(base_model, rank=4, seed=seed).result()
        run.forward_backward([lesson()], "cross_entropy")
        run.optim_step(STEP)
        return run.forward([lesson()], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].tolist()

    assert after_a_step(1) == after_a_step(1) != after_a_step(2)


def test_the_future_of_a_run_can_be_used_as_the_run(service: ServiceClient, base_model: str):
    future = service.create_lora_training_client(base_model, rank=4)
    with pytest.warns(FutureWarning):
        output = future.forward([lesson()], "cross_entropy")
    assert output.result().metrics["loss:sum"] > 0


@exercises(
    ServiceClient.create_training_client_from_state,
    ServiceClient.create_training_client_from_state_async,
    ServiceClient.create_training_client_from_state_with_optimizer,
    ServiceClient.create_training_client_from_state_with_optimizer_async,
)
def test_a_run_goes_on_from_a_checkpoint_with_its_optimizer_or_a_new_one(
    service: ServiceClient, trainer: tinker.TrainingClient
):
    def step(run: tinker.TrainingClient) -> list[float]:
        run.forward_backward([lesson()], "cross_entropy")
        run.optim_step(STEP)
        return run.forward([lesson()], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].tolist()

    async def awaited(future) -> tinker.TrainingClient:
        return await future

    for _ in range(3):
        step(trainer)
    path = trainer.save_state("third").result().path
    expected = step(trainer)

    with_moments = [
        service.create_training_client_from_state_with_optimizer(path).result(),
        asyncio.run(awaited(service.create_training_client_from_state_with_optimizer(path))),
    ]
    without = [
        service.create_training_client_from_state(path).result(),
        asyncio.run(awaited(service.create_training_client_from_state(path))),
    ]
    with older_spelling():
        with_moments.append(asyncio.run(service.create_training_client_from_state_with_optimizer_async(path)))
    with older_spelling():
        without.append(asyncio.run(service.create_training_client_from_state_async(path)))

    assert [step(run) for run in with_moments] == [expected] * 3
    fresh = [step(run) for run in without]
    assert fresh[0] == fresh[1] == fresh[2] != expected


@exercises(ServiceClient.create_sampling_client, ServiceClient.create_sampling_client_async)
def test_a_sampler_is_made_of_a_base_model_or_of_saved_weights(
    service: ServiceClient, trainer: tinker.TrainingClient, base_model: str
):
    path = trainer.save_weights_for_sampler("fresh").result().path

    async def awaited() -> tinker.SamplingClient:
        return await service.create_sampling_client(model_path=path)

    samplers = [
        service.create_sampling_client(base_model=base_model).result(),
        service.create_sampling_client(base_model=base_model, model_path=path).result(),
        asyncio.run(awaited()),
    ]
    with older_spelling():
        samplers.append(asyncio.run(service.create_sampling_client_async(model_path=path)))
    assert [each.get_base_model() for each in samplers] == [base_model] * 4
    scores = [each.compute_logprobs(PROMPT).result()[1:] for each in samplers]
    assert scores[1] == scores[2] == scores[3]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4), "a fresh adapter changes nothing"


@exercises(ServiceClient.get_server_capabilities, ServiceClient.get_server_capabilities_async)
def test_capabilities_in_their_older_spellings(service: ServiceClient, base_model: str):
    with older_spelling():
        answers = [service.get_server_capabilities()]
    with older_spelling():
        answers.append(asyncio.run(service.get_server_capabilities_async()))
    for answer in answers:
        assert base_model in [model.model_name for model in answer.supported_models]


@exercises(ServiceClient.create_rest_client)
def test_a_rest_client_from_a_service_client(service: ServiceClient, base_model: str):
    with older_spelling():
        rest = service.create_rest_client()
    assert rest.get_server_capabilities().result().supported_models[0].max_context_length > 0


@exercises(ServiceClient.get_console_url, ServiceClient.get_telemetry)
def test_what_needs_no_server(service: ServiceClient, trainer: tinker.TrainingClient):
    assert trainer.model_id.split(":")[0] in service.get_console_url()
    service.get_telemetry()


@exercises(ServiceClient.close)
def test_closing_ends_the_session_and_its_runs_but_not_what_they_saved(
    url: str, base_model: str, rest: RestClient
):
    service = ServiceClient(base_url=url)
    run = service.create_lora_training_client(base_model, rank=4).result()
    sampler_path = run.save_weights_for_sampler("last").result().path
    service.close("success", detail="the test is over").result()

    with pytest.raises(RuntimeError, match="closed"):
        service.create_sampling_client(base_model=base_model).result()
    kept = rest.list_checkpoints(run.model_id).result().checkpoints
    assert [each.tinker_path for each in kept] == [sampler_path]
    with ServiceClient(base_url=url) as another:
        sampler = another.create_sampling_client(model_path=sampler_path).result()
        response = sampler.sample(PROMPT, 1, types.SamplingParams(max_tokens=2)).result()
        assert response.sequences[0].tokens
