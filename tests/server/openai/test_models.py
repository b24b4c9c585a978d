"""Which models there are, and whose."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.server.eventual import eventually
from tests.server.openai.surface import (
    PacedEngine,
    ask,
    chat_body,
    complete,
    completion_body,
)
from tests.server.served import Caller, Served, serving
from tinkerlite_server.settings import Limits

OAI = "http://server/oai/api/v1"


def saved(caller: Caller, name: str = "mine", steps: int = 1) -> str:
    """The path of sampler weights that were trained a little."""
    model_id = caller.model()
    for step in range(steps):
        caller.forward_backward(model_id, 2 * step + 1)
        caller.optim_step(model_id, 2 * step + 2, learning_rate=5.0)
    answer = caller.ok("/save_weights_for_sampler", model_id=model_id, seq_id=2 * steps + 1, path=name)
    return caller.result(answer["request_id"])["path"]


def test_base_models_and_ones_own_sampler_weights_are_listed(served: Served):
    mine, other = served.caller("tml-mine"), served.caller("tml-other")
    path = saved(mine)
    caller_lists = [caller.get(f"{OAI}/models").json() for caller in (mine, other)]
    assert [each["object"] for each in caller_lists] == ["list", "list"]
    ids = [[model["id"] for model in each["data"]] for each in caller_lists]
    assert ids == [["toy", "teacher", path], ["toy", "teacher"]]
    for model in caller_lists[0]["data"]:
        assert model["object"] == "model"
        assert model["created"] > 1e9
        assert model["owned_by"]
        assert mine.get(f"{OAI}/models/{model['id']}").json() == model
    assert caller_lists[0]["data"][2]["parent"] == "toy"


def test_sampler_weights_answer_by_their_path_with_or_without_their_base_model(caller: Caller):
    path = saved(caller)
    expected = caller.sample(
        caller.sampler(model_path=path),
        prompt={"chunks": [{"tokens": [1]}]},
        sampling_params={"temperature": 0.0, "max_tokens": 6},
    )
    assert expected.sequences[0].logprobs is not None
    for model in (path, f"toy;{path}"):
        answer = complete(caller, model=model, prompt=[1], logprobs=0, stop="zz")
        assert answer["model"] == model
        assert answer["choices"][0]["logprobs"]["token_logprobs"] == expected.sequences[0].logprobs
    base = complete(caller, prompt=[1], logprobs=0, stop="zz")
    assert base["choices"][0]["logprobs"] != answer["choices"][0]["logprobs"]


def test_the_weights_of_others_are_not_there(served: Served):
    path = saved(served.caller("tml-mine"))
    other = served.caller("tml-other")
    for model in (path, f"toy;{path}"):
        for response in (
            ask(other, "/chat/completions", **chat_body(model=model)),
            ask(other, "/completions", **completion_body(model=model)),
            other.get(f"{OAI}/models/{model}"),
        ):
            assert response.status_code == 404
            assert response.json()["error"]["code"] == "model_not_found"


def test_another_base_model_and_training_checkpoints_are_refused(caller: Caller):
    path = saved(caller)
    response = ask(caller, "/completions", **completion_body(model=f"teacher;{path}"))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "model")
    assert "'toy'" in response.json()["error"]["message"]
    model_id = caller.model(number=1)
    training = caller.save(model_id, 1, "state")["path"]
    response = ask(caller, "/completions", **completion_body(model=training))
    assert response.status_code == 400
    assert "save_weights_for_sampler" in response.json()["error"]["message"]
    assert training not in [each["id"] for each in caller.get(f"{OAI}/models").json()["data"]]


def test_weights_that_were_deleted_are_not_found(caller: Caller):
    path = saved(caller)
    assert complete(caller, model=path)["choices"]
    run, kind, name = path.removeprefix("tinker://").split("/")
    caller.request("DELETE", f"/training_runs/{run}/checkpoints/{kind}/{name}")
    assert ask(caller, "/completions", **completion_body(model=path)).status_code == 404


def test_a_request_that_was_accepted_is_answered_though_its_weights_are_deleted(tmp_path: Path):
    engine = PacedEngine()
    engine.freely = True
    with serving(engine, tmp_path, limits=Limits(sampler_window=1)) as server, ThreadPoolExecutor() as pool:
        caller = server.caller()
        path = saved(caller)
        engine.freely = False
        first = pool.submit(complete, caller)
        eventually(lambda: engine.sampling == 1)
        second = pool.submit(complete, caller, model=path)
        eventually(lambda: len(server.service.scheduler.folders_in_use()) == 1)
        run, kind, name = path.removeprefix("tinker://").split("/")
        caller.request("DELETE", f"/training_runs/{run}/checkpoints/{kind}/{name}")
        server.service.sweep()
        engine.freely = True
        assert first.result(20)["choices"]
        assert second.result(20)["choices"]
        server.service.sweep()
        assert not server.service.scheduler.folders_in_use()
        assert not [*(tmp_path / "checkpoints").iterdir()]
