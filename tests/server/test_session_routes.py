from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.server.eventual import eventually
from tests.server.served import Caller, Served, sample_body, serving
from tests.server.toy_engine import ToyEngine
from tinkerlite import types
from tinkerlite_server.settings import Limits, Settings


def test_anyone_may_ask_whether_the_server_is_alive(toy: ToyEngine, tmp_path: Path):
    with serving(toy, tmp_path, api_keys=["tml-a"]) as served:
        assert served.caller(None).get("/healthz").json() == {"status": "ok"}


def test_the_client_config_keeps_chunks_in_order_and_promises_nothing_that_is_missing(caller: Caller):
    answer = caller.ok("/client/config", sdk_version="0.38.0")
    config = types.ClientConfigResponse.model_validate(answer)
    assert not config.parallel_fwdbwd_chunks
    assert not config.pjwt_auth_enabled
    assert not config.proto_compress_fwdbwd
    assert not answer["sample_use_retrieve_futures"]
    assert not answer["custom_loss_server_side"]
    assert not answer["sample_join_sampling_session"]
    assert caller.ok("/client/dynamic_config")["sample_cancel_enabled"] is True


def test_clients_from_afar_are_asked_to_compress_and_to_send_chunks_side_by_side(tmp_path: Path):
    served = Served(Settings(data_dir=tmp_path, far_clients=True), ToyEngine())
    try:
        config = types.ClientConfigResponse.model_validate(served.caller().ok("/client/config"))
        assert config.parallel_fwdbwd_chunks
        assert config.proto_compress_fwdbwd
    finally:
        served.close()


def test_capabilities_name_every_model_and_what_can_be_asked_of_it(caller: Caller):
    [toy, teacher] = caller.get("/get_server_capabilities").json()["supported_models"]
    assert (toy["model_name"], teacher["model_name"]) == ("toy", "teacher")
    assert toy["max_context_length"] == 32
    assert toy["vocab_size"] == toy["max_topk"] == 11
    assert toy["trainable"]
    assert toy["sampleable"]
    assert "importance_sampling" in toy["losses"]
    assert "stable_reinforce" not in toy["losses"]


def test_every_feature_of_sampling_that_is_announced_is_answered(caller: Caller):
    [toy, _] = caller.get("/get_server_capabilities").json()["supported_models"]
    values: dict[str, object] = dict.fromkeys(toy["sample_features"], 1)
    values["target_prompt_logprobs"] = {"data": [4, 5], "dtype": "int64", "shape": [2, 1]}
    response = caller.sample(caller.sampler(), **values)
    assert {name for name in values if answers(response)[name] is not None} == set(toy["sample_features"])


def answers(response: types.SampleResponse) -> dict[str, object]:
    """What is in a response, by the field of the request that asks for it."""
    assert response.prompt_logprobs is not None
    masked = response.prompt_logprobs[1] is None
    return {
        "topk_sample_logprobs": response.sequences[0].topk_logprobs_np,
        "prompt_logprobs": response.prompt_logprobs,
        "topk_prompt_logprobs": response.topk_prompt_logprobs_np,
        "prompt_logprobs_last_n": masked or None,
        "target_prompt_logprobs": response.target_prompt_logprobs,
        "prompt_alt_tokens_k": response.prompt_alt_tokens,
    }


def test_how_many_alternatives_there_are_is_a_setting_and_announced(toy: ToyEngine, tmp_path: Path):
    with serving(toy, tmp_path, limits=Limits(max_topk=3)) as served:
        caller = served.caller()
        [announced, _] = caller.get("/get_server_capabilities").json()["supported_models"]
        assert announced["max_topk"] == 3
        sampler = caller.sampler()
        names = ("topk_prompt_logprobs", "topk_sample_logprobs", "prompt_alt_tokens_k")
        for number, name in enumerate(names):
            assert caller.sample(sampler, number, **{name: 3}).sequences
            body = sample_body(sampler, 9, **{name: 4})
            assert f"{name} is 4; it must be 0 to 3" in caller.refused("/asample", **body)


def test_a_heartbeat_keeps_a_session_and_stops_once_it_has_ended(caller: Caller):
    session = caller.session()
    assert caller.ok("/session_heartbeat", session_id=session) == {"type": "session_heartbeat"}
    caller.ok(f"/sessions/{session}/finish", reason={"type": "success"}, detail=None)
    assert "has ended" in caller.refused("/session_heartbeat", status=410, session_id=session)
    caller.refused("/session_heartbeat", status=404, session_id="nobody")


def test_a_finished_session_frees_its_runs_and_keeps_its_checkpoints(caller: Caller, toy: ToyEngine):
    session = caller.session()
    model = caller.model(session)
    path = caller.save(model, 1, "a")["path"]
    snapshot = caller.snapshot(model, 2, 0)
    caller.ok(f"/sessions/{session}/finish", reason={"type": "success"}, detail=None)
    message = caller.refused("/optim_step", status=404, model_id=model, seq_id=3, adam_params={})
    assert "its client closed it (success)" in message
    assert f"its last checkpoint is {path}" in message
    caller.refused("/asample", status=404, **sample_body(snapshot))
    caller.refused("/create_model", status=410, session_id=session, model_seq_id=1, base_model="toy")
    # Chores are done in order, so once a new run is there the old one is not.
    caller.model()
    assert ("drop_run", model) in toy.calls
    assert ("drop_adapter", snapshot) in toy.calls
    assert caller.ok("/weights_info", tinker_path=path)["base_model"] == "toy"


def test_finishing_a_session_again_changes_nothing(caller: Caller):
    session = caller.session()
    for reason in ("errored", "success"):
        caller.ok(f"/sessions/{session}/finish", reason={"type": reason}, detail=None)
    assert "(errored)" in caller.refused("/session_heartbeat", status=410, session_id=session)


def test_what_waits_in_a_finished_session_fails(caller: Caller, toy: ToyEngine):
    session = caller.session()
    model = caller.model(session)
    waiting = caller.optim_step(model, 2)
    caller.ok(f"/sessions/{session}/finish", reason={"type": "interrupted"}, detail="Ctrl-C")
    message, category = caller.failure(waiting)
    assert "has ended" in message
    assert category == "user"


def test_a_session_without_a_sign_of_life_ends(toy: ToyEngine, tmp_path: Path):
    with serving(toy, tmp_path, limits=Limits(session_seconds=0.0)) as served:
        caller = served.caller()
        session = caller.session()
        model = caller.model(session)
        served.service.sweep()
        message = caller.refused("/session_heartbeat", status=410, session_id=session)
        assert "it gave no sign of life for 0 s" in message
        caller.refused("/get_info", status=404, model_id=model)


def test_a_server_that_stood_still_ends_nobodys_session(toy: ToyEngine, tmp_path: Path):
    limits = Limits(session_seconds=0.5, sweep_seconds=0.1)
    with serving(toy, tmp_path, limits=limits) as served:
        caller = served.caller()
        session = caller.session()
        stood_still = threading.Event()

        async def stand_still() -> None:
            time.sleep(1.0)
            stood_still.set()

        served.call(stand_still())
        assert stood_still.is_set()
        caller.ok("/session_heartbeat", session_id=session)


def test_one_part_of_the_sweep_that_fails_keeps_none_of_the_others(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
):
    service = caller.server.service
    caller.forward_backward(caller.model(), 1)
    touched: list[dict[str, float]] = []

    def full(_: object) -> None:
        raise OSError("no space left")

    collected = threading.Event()
    monkeypatch.setattr(service.store, "touch_runs", full)
    monkeypatch.setattr(service.store, "drop_expired_checkpoints", collected.set)
    service.sweep()
    assert collected.is_set()
    monkeypatch.setattr(service.store, "touch_runs", touched.append)
    service.sweep()
    assert touched[-1], "what was used is noted by the next one"


def test_a_session_with_signs_of_life_goes_on(caller: Caller):
    session = caller.session()
    caller.server.service.sweep()
    caller.ok("/session_heartbeat", session_id=session)


def test_sessions_are_listed_with_what_they_made(caller: Caller):
    answer = caller.ok(
        "/create_session", tags=["x"], user_metadata={"run": 1, "name": "n"}, display_name="mine"
    )
    session = answer["session_id"]
    model, sampler = caller.model(session), caller.sampler(session)
    assert caller.get("/sessions?limit=5").json() == {"sessions": [session]}
    assert caller.get(f"/sessions/{session}?access_scope=owned").json() == {
        "training_run_ids": [model],
        "sampler_ids": [sampler],
        "user_metadata": {"run": "1", "name": "n"},
        "display_name": "mine",
    }


def test_telemetry_is_accepted_whatever_it_holds(caller: Caller):
    assert caller.ok("/telemetry", events=[{"anything": None}]) == {"status": "accepted"}
    response = caller.request("POST", "/telemetry", content=b"not even JSON")
    assert response.status_code == 200


@pytest.mark.parametrize("base_model", ["tiny", "/a/local/folder"])
def test_tokenizer_files_come_from_the_server(tmp_path: Path, base_model: str):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text('{"version": "é"}', encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"\x00" * 8)
    with serving(ToyEngine([base_model], folder), tmp_path / "data") as served:
        answer = served.caller().get(f"/tokenizers/{base_model}")
        files = types.TokenizerFiles.model_validate(answer.json())
        assert files.files == {"tokenizer.json": '{"version": "é"}'}
        assert files.model_name == base_model
        assert served.caller().get("/tokenizers/other").status_code == 404


@pytest.mark.parametrize("before", [True, False])
def test_a_run_that_is_made_just_as_its_session_ends_is_not_left_in_memory(
    served: Served, caller: Caller, toy: ToyEngine, monkeypatch: pytest.MonkeyPatch, before: bool
):
    """Sessions end on another thread: before the run has its row, or before it has its queue."""
    session = caller.session()
    add = served.service.store.add_run

    def add_and_end(model_id: str, **fields: Any) -> None:
        if before:
            served.service.end_session(session, "it was closed")
        add(model_id, **fields)
        served.service.end_session(session, "it was closed")

    monkeypatch.setattr(served.service.store, "add_run", add_and_end)
    request_id = caller.submit_model(session)
    caller.retrieve(request_id)
    model = f"{session}:train:0"
    assert "it was closed" in caller.refused("/get_info", status=404, model_id=model)
    eventually(lambda: toy.calls[-1:] == [("drop_run", model)])


def test_the_samples_of_a_finished_session_are_given_up_and_nobody_waits_behind_them(
    caller: Caller, toy: ToyEngine
):
    mine, yours = caller.session(), caller.session()
    model, mine_sampler, sampler = caller.model(yours), caller.sampler(mine), caller.sampler(yours)
    toy.gate.clear()
    caller.optim_step(model, 1)
    given_up = [caller.submit_sample(mine_sampler, seq)["request_id"] for seq in range(3)]
    wanted = caller.submit_sample(sampler)["request_id"]
    caller.ok(f"/sessions/{mine}/finish", reason={"type": "interrupted"}, detail="Ctrl-C")
    for request_id in given_up:
        message, category = caller.failure(request_id)
        assert "has ended, as its client closed it (interrupted" in message
        assert category == "user"
    toy.gate.set()
    assert caller.retrieve(wanted).status_code == 200
    assert [call[0] for call in toy.calls].count("submit") == 1
