from __future__ import annotations

from typing import Any

import pytest

from tests.server.served import Caller
from tests.server.toy_engine import ToyEngine
from tinkerlite_server.errors import EngineFailure, NoRoom


def test_a_runs_id_is_made_of_its_session_and_number(caller: Caller):
    session = caller.session()
    answer = caller.result(caller.submit_model(session, 3))
    assert answer == {"model_id": f"{session}:train:3", "type": "create_model"}


def test_a_run_made_twice_is_the_same_run(caller: Caller, toy: ToyEngine):
    session = caller.session()
    assert caller.submit_model(session) == caller.submit_model(session)
    caller.model(session)
    assert [call[0] for call in toy.calls].count("create_run") == 1


def test_a_run_of_the_same_number_and_other_settings_is_refused(caller: Caller):
    session = caller.session()
    caller.submit_model(session, rank=4)
    body = create_body(session) | {"lora_config": {"rank": 8}}
    assert "other content" in caller.refused("/create_model", **body)


def test_info_says_what_a_run_trains(caller: Caller):
    model = caller.model()
    assert caller.ok("/get_info", model_id=model) == {
        "model_id": model,
        "model_data": {"arch": "bigram", "model_name": "toy", "tokenizer_id": "toy"},
        "optimizer_config": {"type": "adamw"},
        "is_lora": True,
        "lora_rank": 4,
        "lora_alpha": 32.0,
        "model_name": "toy",
    }


@pytest.mark.parametrize("config", [{"lora_config": None}, {}])
def test_a_run_without_lora_config_trains_all_weights(caller: Caller, toy: ToyEngine, config: dict[str, Any]):
    body = {"session_id": caller.session(), "model_seq_id": 0, "base_model": "toy"} | config
    model = caller.result(caller.ok("/create_model", **body)["request_id"])["model_id"]
    assert toy.run(model).adapter is None
    info = caller.ok("/get_info", model_id=model)
    assert (info["is_lora"], info["lora_rank"], info["lora_alpha"]) == (False, None, None)
    run = caller.get(f"/training_runs/{model}").json()
    assert (run["is_lora"], run["lora_rank"]) == (False, None)


def test_a_run_of_all_weights_is_saved_and_loaded_as_one(caller: Caller, toy: ToyEngine):
    session = caller.session()
    body = {"session_id": session, "model_seq_id": 0, "base_model": "toy"}
    model = caller.result(caller.ok("/create_model", **body)["request_id"])["model_id"]
    caller.forward_backward(model, 1)
    caller.optim_step(model, 2)
    path = caller.save(model, 3, "step1")["path"]
    info = caller.ok("/weights_info", tinker_path=path)
    assert (info["base_model"], info["is_lora"], info["lora_rank"]) == ("toy", False, None)
    # Over an adapter, too: a run is then what it has loaded.
    lora = caller.model(session, 1)
    answer = caller.ok("/load_weights", model_id=lora, seq_id=1, path=path, optimizer=True)
    caller.result(answer["request_id"])
    for each, seq in ((model, 4), (lora, 2)):
        assert caller.ok("/get_info", model_id=each)["is_lora"] is False
        assert caller.result(caller.optim_step(each, seq))["metrics"]["step"] == 2.0


def test_a_run_of_all_weights_takes_the_room_of_saved_ones_that_nobody_samples_from(
    caller: Caller, toy: ToyEngine
):
    session = caller.session()
    run = caller.model(session, 0)
    saved = caller.sampler(session, 0, model_path=caller.save(run, 1, "a")["path"])
    assert caller.sample(saved).sequences
    toy.most_adapters = 1
    body = {"session_id": session, "model_seq_id": 1, "base_model": "toy", "lora_config": None}
    assert caller.result(caller.ok("/create_model", **body)["request_id"])["model_id"]
    toy.most_adapters = 2
    assert caller.sample(saved).sequences, "and they come back when they are asked for"


def test_a_run_that_has_no_room_is_refused_by_its_future(caller: Caller, toy: ToyEngine):
    session = caller.session()
    toy.failures["create_run"] = NoRoom("training all weights of 'toy' takes 99 bytes")
    body = {"session_id": session, "model_seq_id": 0, "base_model": "toy"}
    request = caller.ok("/create_model", **body)["request_id"]
    assert caller.failure(request) == ("training all weights of 'toy' takes 99 bytes", "user")


def create_body(session: str) -> dict[str, Any]:
    return {"session_id": session, "model_seq_id": 0, "base_model": "toy", "lora_config": {"rank": 4}}


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"base_model": "nothing"}, 404, "this server has ['teacher', 'toy']"),
        ({"lora_config": {"rank": 0}}, 400, "lora_config.rank"),
        ({"lora_config": {"rank": -3}}, 400, "lora_config.rank"),
        ({"lora_config": {"rank": 1025}}, 400, "lora_config.rank is 1025; it must be 1 to 1024"),
        ({"lora_config": {"rank": 4, "alpha": 3}}, 400, "lora_config.alpha: Extra inputs"),
        ({"lora_config": {"rank": 4, "seed": -1}}, 400, "lora_config.seed is -1"),
        (
            {"lora_config": {"rank": 4, "train_mlp": False, "train_attn": False, "train_unembed": False}},
            400,
            "trains nothing",
        ),
        (
            {"optimizer_config": {"type": "dimuon", "version": 1}},
            400,
            "'dimuon'; this server has 'adamw' alone",
        ),
        ({"model_seq_id": -1}, 400, "model_seq_id"),
        ({"session_id": "nobody"}, 404, "there is no session 'nobody'"),
    ],
)
def test_a_run_that_cannot_be_made_is_refused(
    lasting_caller: Caller, fields: dict[str, Any], status: int, message: str
):
    body = create_body(lasting_caller.session()) | fields
    assert message in lasting_caller.refused("/create_model", status=status, **body)


def test_a_base_model_that_does_not_load_is_a_failed_future(caller: Caller, toy: ToyEngine):
    session = caller.session()
    toy.failures["create_run"] = EngineFailure("the weights of 'toy' are corrupt")
    assert caller.failure(caller.submit_model(session)) == ("the weights of 'toy' are corrupt", "server")
    assert "there is no model" in caller.refused("/get_info", status=404, model_id=f"{session}:train:0")
    # The next one may be luckier.
    assert caller.model(session, 1)


def test_an_unloaded_run_is_gone_once_what_it_was_sent_before_is_done(caller: Caller):
    model = caller.model()
    step = caller.optim_step(model, 1)
    unloaded = caller.ok("/unload_model", model_id=model)["request_id"]
    assert caller.result(unloaded) == {"model_id": model, "type": "unload_model"}
    assert "metrics" in caller.result(step)
    assert "it was unloaded" in caller.refused("/get_info", status=404, model_id=model)


# ---- loading ----


def trained(caller: Caller, session: str) -> str:
    """A run after one step."""
    model = caller.model(session)
    caller.forward_backward(model, 1)
    caller.optim_step(model, 2)
    return model


def test_a_run_made_from_a_checkpoint_goes_on_where_that_one_was(caller: Caller, toy: ToyEngine):
    model = trained(caller, caller.session())
    path = caller.save(model, 3, "step1")["path"]
    session = caller.session()
    answer = caller.ok("/load_weights", session_id=session, model_seq_id=0, path=path, optimizer=True)
    result = caller.result(answer["request_id"])
    resumed = f"{session}:train:0"
    assert result == {"path": path, "model_id": resumed, "type": "load_weights"}
    assert caller.ok("/get_info", model_id=resumed)["lora_rank"] == 4
    for each, seq in ((model, 4), (resumed, 1)):
        caller.forward_backward(each, seq)
        assert caller.result(caller.optim_step(each, seq + 1))["metrics"]["step"] == 2.0
    assert (toy.run(model).table == toy.run(resumed).table).all()


def test_without_the_optimizer_its_state_is_fresh(caller: Caller):
    path = caller.save(trained(caller, caller.session()), 3, "step1")["path"]
    session = caller.session()
    caller.ok("/load_weights", session_id=session, model_seq_id=0, path=path, optimizer=False)
    assert caller.result(caller.optim_step(f"{session}:train:0", 1))["metrics"]["step"] == 1.0


def test_older_clients_load_into_a_run_that_they_made(caller: Caller):
    session = caller.session()
    path = caller.save(trained(caller, session), 3, "step1")["path"]
    info = caller.ok("/weights_info", tinker_path=path)
    assert (info["base_model"], info["is_lora"], info["lora_rank"], info["train_mlp"]) == (
        "toy",
        True,
        4,
        True,
    )
    model = caller.model(session, 1)
    answer = caller.ok("/load_weights", model_id=model, seq_id=1, path=path, optimizer=True)
    assert caller.result(answer["request_id"])["model_id"] == model
    assert caller.result(caller.optim_step(model, 2))["metrics"]["step"] == 2.0


def test_a_load_is_run_once_however_often_it_is_sent(caller: Caller, toy: ToyEngine):
    session = caller.session()
    path = caller.save(trained(caller, session), 3, "step1")["path"]
    body = {"session_id": session, "model_seq_id": 1, "path": path, "optimizer": True}
    first, again = caller.ok("/load_weights", **body), caller.ok("/load_weights", **body)
    assert first == again
    caller.result(first["request_id"])
    assert [call[0] for call in toy.calls].count("load_run") == 1


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"path": "tinker://x/weights/y"}, 404, "there is no checkpoint"),
        ({"path": "y"}, 400, "tinker://RUN/KIND/NAME"),
        ({"base_model": "teacher"}, 400, "weights fit their own base model alone"),
        ({"model_id": "both"}, 400, "name either session_id"),
        ({"session_id": None}, 400, "name either session_id"),
        ({"model_seq_id": None}, 400, "model_seq_id: Input should be a valid integer"),
        ({"optimizer_config": {"type": "dimuon"}}, 400, "'adamw' alone"),
    ],
)
def test_a_load_that_cannot_be_is_refused(
    lasting_caller: Caller, fields: dict[str, Any], status: int, message: str
):
    session = lasting_caller.session()
    path = lasting_caller.save(lasting_caller.model(session), 1, "a")["path"]
    body = {"session_id": session, "model_seq_id": 1, "path": path, "optimizer": True} | fields
    assert message in lasting_caller.refused("/load_weights", status=status, **body)


def test_training_does_not_go_on_from_sampler_weights(caller: Caller):
    session = caller.session()
    answer = caller.ok("/save_weights_for_sampler", model_id=caller.model(session), seq_id=1, path="a")
    path = caller.result(answer["request_id"])["path"]
    body = {"session_id": session, "model_seq_id": 1, "path": path, "optimizer": False}
    assert "save_state()" in caller.refused("/load_weights", **body)


def test_a_refused_load_into_a_run_uses_up_its_number(caller: Caller):
    model = caller.model()
    caller.refused(
        "/load_weights", status=404, model_id=model, seq_id=1, path="tinker://x/weights/y", optimizer=True
    )
    assert "metrics" in caller.result(caller.optim_step(model, 2))
