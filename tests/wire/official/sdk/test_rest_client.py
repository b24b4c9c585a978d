"""RestClient: what the server has and what was saved, listed, changed and deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from methods import exercises, older_spelling
from tinker import NotFoundError, RestClient, SamplingClient, ServiceClient, TrainingClient

HOUR = 3600


def both(current: Any, older: Callable[[], Awaitable[Any]]) -> Any:
    """The answer of a method, which is the same when awaited and under its older name."""

    async def awaited() -> Any:
        return await current

    async def called() -> Any:
        return await older()

    answer = current.result()
    assert asyncio.run(awaited()) == answer
    with older_spelling():
        assert asyncio.run(called()) == answer
    return answer


@exercises(RestClient.get_server_capabilities, RestClient.get_telemetry)
def test_the_server_says_what_it_offers(rest: RestClient, base_model: str):
    [model] = rest.get_server_capabilities().result().supported_models
    assert (model.model_name, model.max_context_length) == (base_model, 512)
    assert model.trainable
    assert model.sampleable
    rest.get_telemetry()


@exercises(RestClient.get_training_run, RestClient.get_training_run_async)
@exercises(RestClient.get_training_run_by_tinker_path, RestClient.get_training_run_by_tinker_path_async)
@exercises(RestClient.list_training_runs, RestClient.list_training_runs_async)
def test_runs_are_listed_with_what_they_saved_last(
    rest: RestClient, trainer: TrainingClient, base_model: str
):
    path = trainer.save_state("a").result().path
    sampler_path = trainer.save_weights_for_sampler("b").result().path
    run_id = trainer.model_id
    run = both(rest.get_training_run(run_id), lambda: rest.get_training_run_async(run_id))
    assert (run.training_run_id, run.base_model, run.is_lora, run.lora_rank, run.corrupted) == (
        run_id,
        base_model,
        True,
        4,
        False,
    )
    assert run.last_checkpoint.tinker_path == path
    assert run.last_sampler_checkpoint.tinker_path == sampler_path
    by_path = both(
        rest.get_training_run_by_tinker_path(path), lambda: rest.get_training_run_by_tinker_path_async(path)
    )
    assert by_path == run
    listed = both(rest.list_training_runs(limit=1), lambda: rest.list_training_runs_async(limit=1))
    assert listed.training_runs == [run]
    assert (listed.cursor.limit, listed.cursor.offset) == (1, 0)
    next_page = rest.list_training_runs(limit=1, offset=1).result()
    assert listed.cursor.total_count > 1
    assert next_page.training_runs[0].training_run_id != run_id


@exercises(RestClient.list_checkpoints, RestClient.list_checkpoints_async)
@exercises(RestClient.list_user_checkpoints, RestClient.list_user_checkpoints_async)
@exercises(RestClient.get_weights_info_by_tinker_path)
def test_checkpoints_are_listed_by_run_and_altogether(
    rest: RestClient, trainer: TrainingClient, base_model: str
):
    before = datetime.now(UTC) - timedelta(seconds=5)
    trainer.save_state("kept", user_metadata={"note": "text"}).result()
    trainer.save_weights_for_sampler("gone", ttl_seconds=HOUR).result()
    run_id = trainer.model_id
    listed = both(rest.list_checkpoints(run_id), lambda: rest.list_checkpoints_async(run_id)).checkpoints
    checkpoints = {each.checkpoint_id: each for each in listed}
    assert sorted(checkpoints) == ["sampler_weights/gone", "weights/kept"]
    kept, gone = checkpoints["weights/kept"], checkpoints["sampler_weights/gone"]
    assert (kept.checkpoint_type, gone.checkpoint_type) == ("training", "sampler")
    assert kept.tinker_path == f"tinker://{run_id}/weights/kept"
    assert before < kept.time < datetime.now(UTC) + timedelta(seconds=5)
    assert kept.size_bytes > gone.size_bytes > 0, "moments weigh too"
    assert (kept.user_metadata, kept.public, kept.expires_at) == ({"note": "text"}, False, None)
    assert 3000 < (gone.expires_at - datetime.now(UTC)).total_seconds() <= HOUR
    everything = both(rest.list_user_checkpoints(limit=2), lambda: rest.list_user_checkpoints_async(limit=2))
    assert everything.checkpoints == listed, "the newest first"
    assert everything.cursor.total_count >= 2
    info = rest.get_weights_info_by_tinker_path(kept.tinker_path).result()
    assert (info.base_model, info.is_lora, info.lora_rank) == (base_model, True, 4)


@exercises(
    RestClient.set_checkpoint_ttl_from_tinker_path, RestClient.set_checkpoint_ttl_from_tinker_path_async
)
def test_a_checkpoint_is_made_to_expire_and_kept_after_all(rest: RestClient, trainer: TrainingClient):
    path = trainer.save_state("timed").result().path

    def expiry() -> datetime | None:
        [checkpoint] = rest.list_checkpoints(trainer.model_id).result().checkpoints
        return checkpoint.expires_at

    rest.set_checkpoint_ttl_from_tinker_path(path, HOUR).result()
    assert timedelta(minutes=55) < expiry() - datetime.now(UTC) < timedelta(minutes=61)
    rest.set_checkpoint_ttl_from_tinker_path(path, None).result()
    assert expiry() is None
    with older_spelling():
        asyncio.run(rest.set_checkpoint_ttl_from_tinker_path_async(path, 2 * HOUR))
    assert timedelta(minutes=115) < expiry() - datetime.now(UTC) < timedelta(minutes=121)


@exercises(RestClient.delete_checkpoint, RestClient.delete_checkpoint_async)
@exercises(RestClient.delete_checkpoint_from_tinker_path, RestClient.delete_checkpoint_from_tinker_path_async)
def test_a_deleted_checkpoint_is_gone(rest: RestClient, service: ServiceClient, trainer: TrainingClient):
    paths = [trainer.save_state(name).result().path for name in "abcd"]
    run_id = trainer.model_id
    rest.delete_checkpoint(run_id, "weights/a").result()
    with older_spelling():
        asyncio.run(rest.delete_checkpoint_async(run_id, "weights/b"))
    rest.delete_checkpoint_from_tinker_path(paths[2]).result()
    with older_spelling():
        asyncio.run(rest.delete_checkpoint_from_tinker_path_async(paths[3]))
    assert rest.list_checkpoints(run_id).result().checkpoints == []
    with pytest.raises(NotFoundError, match="there is no checkpoint"):
        service.create_training_client_from_state(paths[0]).result()


@exercises(RestClient.get_session, RestClient.get_session_async)
@exercises(RestClient.list_sessions, RestClient.list_sessions_async)
@exercises(RestClient.get_sampler, RestClient.get_sampler_async)
def test_a_session_shows_its_runs_and_samplers(
    rest: RestClient, trainer: TrainingClient, sampler: SamplingClient, base_model: str
):
    session_id = trainer.model_id.split(":")[0]
    path = trainer.save_weights_for_sampler("shown").result().path
    trainer.create_sampling_client(path).result()
    session = both(rest.get_session(session_id), lambda: rest.get_session_async(session_id))
    assert trainer.model_id in session.training_run_ids
    assert session.user_metadata == {"from": "tests"}
    assert session.display_name == "tests"
    sessions = both(rest.list_sessions(limit=100), lambda: rest.list_sessions_async(limit=100))
    assert session_id in sessions.sessions
    samplers = {
        sampler_id: both(rest.get_sampler(sampler_id), lambda each=sampler_id: rest.get_sampler_async(each))
        for sampler_id in session.sampler_ids
    }
    assert {each.base_model for each in samplers.values()} == {base_model}
    assert {None, path} <= {each.model_path for each in samplers.values()}
