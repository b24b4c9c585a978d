"""Weights that are shown to others, copied and taken elsewhere; sessions that are searched for."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from datetime import UTC, datetime, timedelta

import pytest
from lessons import PROMPT, STEP, lesson
from methods import exercises, older_spelling
from tinker import (
    BadRequestError,
    ExperimentalWarning,
    NotFoundError,
    RestClient,
    ServiceClient,
    TrainingClient,
    types,
)


@pytest.fixture(scope="session")
def stranger(url: str) -> ServiceClient:
    """Someone with the other key that is let in."""
    return ServiceClient(base_url=url, api_key="tml-other")


@pytest.fixture
def trained(trainer: TrainingClient) -> TrainingClient:
    trainer.forward_backward([lesson()], "cross_entropy")
    trainer.optim_step(STEP).result()
    return trainer


@exercises(RestClient.publish_checkpoint_from_tinker_path, RestClient.unpublish_checkpoint_from_tinker_path)
@exercises(
    RestClient.publish_checkpoint_from_tinker_path_async,
    RestClient.unpublish_checkpoint_from_tinker_path_async,
)
def test_a_published_checkpoint_is_everyones_until_it_is_not(
    rest: RestClient, trained: TrainingClient, stranger: ServiceClient
):
    path = trained.save_weights_for_sampler("shown").result().path
    own = trained.create_sampling_client(path).result().compute_logprobs(PROMPT).result()
    with pytest.raises(NotFoundError):
        stranger.create_sampling_client(model_path=path).result()
    for _ in range(2):  # the second time changes nothing
        rest.publish_checkpoint_from_tinker_path(path).result()
    [listed] = rest.list_checkpoints(trained.model_id).result().checkpoints
    assert listed.public
    theirs = stranger.create_sampling_client(model_path=path).result()
    assert theirs.compute_logprobs(PROMPT).result() == own
    rest.unpublish_checkpoint_from_tinker_path(path).result()
    with pytest.raises(NotFoundError):
        stranger.create_sampling_client(model_path=path).result()
    assert theirs.compute_logprobs(PROMPT).result() == own, "what was made of it goes on"
    with older_spelling():
        asyncio.run(rest.publish_checkpoint_from_tinker_path_async(path))
    with older_spelling():
        asyncio.run(rest.unpublish_checkpoint_from_tinker_path_async(path))
    assert not rest.list_checkpoints(trained.model_id).result().checkpoints[0].public


@exercises(TrainingClient.save_weights_external, TrainingClient.save_weights_external_async)
@exercises(RestClient.get_external_weights_urls, RestClient.get_external_weights_urls_async)
def test_external_weights_are_a_peft_adapter_that_a_plain_program_downloads(
    rest: RestClient, trained: TrainingClient, base_model: str
):
    saved = trained.save_weights_external("final", ttl_seconds=3600).result()
    signed = rest.get_external_weights_urls(saved.path).result()
    assert timedelta(minutes=10) < signed.expires - datetime.now(UTC)
    files = {}
    for name, url in signed.urls.items():
        with urllib.request.urlopen(url, timeout=60) as response:
            files[name] = response.read()
            assert int(response.headers["Content-Length"]) == len(files[name])
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(files)
    config = json.loads(files["adapter_config.json"])
    assert (config["peft_type"], config["r"], config["base_model_name_or_path"]) == ("LORA", 4, base_model)
    [listed] = rest.list_checkpoints(trained.model_id).result().checkpoints
    assert sum(map(len, files.values())) == listed.size_bytes
    assert (listed.checkpoint_type, listed.tinker_path) == ("external", saved.path)

    async def older() -> types.SaveWeightsExternalResponse:
        return await (await trained.save_weights_external_async("again"))

    with older_spelling():
        again = asyncio.run(older())
    with older_spelling():
        signed = asyncio.run(rest.get_external_weights_urls_async(again.path))
    assert set(signed.urls) == set(files)


def test_encryption_for_what_is_no_public_key_is_refused_and_the_run_goes_on(trained: TrainingClient):
    with pytest.raises(BadRequestError, match="age1xyz"):
        trained.save_weights_external("final", age_encryption_recipients=["age1xyz"]).result()
    assert trained.save_weights_external("final").result().path


@exercises(RestClient.copy_weights, RestClient.copy_weights_async, ServiceClient.copy_weights)
def test_a_copy_is_filed_under_a_project_and_outlives_the_original(
    url: str, rest: RestClient, service: ServiceClient, trained: TrainingClient
):
    path = trained.save_state("original").result().path
    copy = rest.copy_weights(path, "archive", ttl_seconds=3600).result()
    with older_spelling():
        copies = {copy, asyncio.run(rest.copy_weights_async(path, "archive"))}
    with ServiceClient(base_url=url, project_id="archive") as archive:
        copies.add(archive.copy_weights(path).result())
    assert len(copies) == 3
    rest.delete_checkpoint_from_tinker_path(path).result()
    listed = rest.list_training_runs(limit=100, project_id="archive").result().training_runs
    assert {run.last_checkpoint.tinker_path for run in listed if run.last_checkpoint} >= copies
    resumed = service.create_training_client_from_state_with_optimizer(copy).result()
    assert resumed.optim_step(STEP).result().metrics["step"] == 2


def test_weights_are_loaded_with_the_token_of_another_account(
    trained: TrainingClient, stranger: ServiceClient
):
    path = trained.save_state("private").result().path
    with pytest.raises(NotFoundError):
        stranger.create_training_client_from_state(path).result()
    loaded = stranger.create_training_client_from_state(path, weights_access_token="tml-any").result()
    assert loaded.get_info().lora_rank == 4


@exercises(RestClient.search_sessions)
@exercises(RestClient.assign_session_project, RestClient.assign_session_project_async)
def test_sessions_are_found_by_name_status_and_project(url: str, rest: RestClient, base_model: str):
    def found(**conditions: object) -> list[types.SessionSummary]:
        with pytest.warns(ExperimentalWarning):
            future = rest.search_sessions(types.SessionSearchRequest(**conditions))
        return future.result().sessions

    client = ServiceClient(base_url=url, display_name="Needle in a stack", user_metadata={"k": "v"})
    client.create_sampling_client(base_model=base_model).result()
    [session] = found(display_name="NEEDLE stack", user_metadata={"k": "v"})
    assert session.status.type == "active"
    rest.assign_session_project(session.session_id, "sewing").result()
    [labelled] = found(project_ids=["sewing"])
    assert (labelled.session_id, labelled.project_id) == (session.session_id, "sewing")
    with older_spelling():
        asyncio.run(rest.assign_session_project_async(session.session_id, "mending"))
    assert found(project_ids=["sewing"]) == []
    client.close("errored", "the thread broke").result()
    broken = types.ClientFinishedSessionStatusQuery(reasons=["errored"])
    [ended] = found(display_name="needle", statuses=[broken])
    assert (ended.status.reason.type, ended.status.detail) == ("errored", "the thread broke")
    assert found(display_name="needle", statuses=[types.ActiveSessionStatusQuery()]) == []
