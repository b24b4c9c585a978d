"""A caller sees only their own: everyone else's is answered as if it were not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.server.served import Caller, Served, datum, sample_body, serving
from tests.server.toy_engine import ToyEngine


@pytest.fixture
def shared(toy: ToyEngine, tmp_path: Path) -> Iterator[Served]:
    with serving(toy, tmp_path, api_keys=["tml-mine", "tml-yours"]) as running:
        yield running


@pytest.fixture
def mine(shared: Served) -> Caller:
    return shared.caller("tml-mine")


@pytest.fixture
def yours(shared: Served) -> Caller:
    return shared.caller("tml-yours")


def routes(server: Served) -> list[tuple[str, str]]:
    """Every (method, path) of the server, with something for each parameter, but those that need no key."""
    found = [
        (method.upper(), re.sub(r"{[^}]*}", "x", path))
        for path, methods in server.app.openapi()["paths"].items()
        for method in methods
    ]
    return [
        (method, path) for method, path in found if path != "/api/v1/healthz" and "/downloads/" not in path
    ]


@pytest.mark.parametrize("key", [None, "", "tml-other", "tml-min", "tml-mine-"])
def test_an_unknown_key_is_turned_away_everywhere(shared: Served, key: str | None):
    asked = routes(shared)
    assert ("POST", "/api/v1/asample") in asked
    assert ("GET", "/api/v1/samplers/x") in asked
    assert ("POST", "/oai/api/v1/completions") in asked
    for method, path in asked:
        response = shared.caller(key).request(method, f"http://server{path}", json={})
        assert response.status_code == 401, (method, path)
        assert "API key" in response.text


def test_a_bearer_token_is_as_good_as_the_header(shared: Served):
    response = shared.caller(None).request(
        "GET", "/get_server_capabilities", headers={"Authorization": "Bearer tml-mine"}
    )
    assert response.status_code == 200


def test_someone_elses_session_run_sampler_and_checkpoint_are_not_there(mine: Caller, yours: Caller):
    session = mine.session()
    model = mine.model(session)
    path = mine.save(model, 1, "a")["path"]
    sampler = mine.sampler(session)
    yours_session = yours.session()
    for refused in (
        ("/session_heartbeat", {"session_id": session}),
        ("/create_model", {"session_id": session, "model_seq_id": 5, "base_model": "toy"}),
        ("/create_sampling_session", {"session_id": session, "sampling_session_seq_id": 5}),
        ("/create_sampling_session",
         {"session_id": yours_session, "sampling_session_seq_id": 0, "model_path": path}),
        ("/load_weights",
         {"session_id": yours_session, "model_seq_id": 0, "path": path, "optimizer": True}),
        (f"/sessions/{session}/finish", {"reason": {"type": "success"}}),
        ("/get_info", {"model_id": model}),
        ("/unload_model", {"model_id": model}),
        ("/optim_step", {"model_id": model, "seq_id": 2, "adam_params": {}}),
        ("/save_weights", {"model_id": model, "seq_id": 2, "path": "b"}),
        ("/save_weights_for_sampler", {"model_id": model, "seq_id": 2, "path": "b"}),
        ("/weights_info", {"tinker_path": path}),
        ("/asample", sample_body(sampler)),
    ):  # fmt: skip
        yours.refused(refused[0], status=404, **refused[1])
    assert yours.post_forward_backward(model, 2).status_code == 404
    for url in (f"/sessions/{session}", f"/samplers/{sampler}", f"/training_runs/{model}",
                f"/training_runs/{model}/checkpoints"):  # fmt: skip
        assert yours.get(url).status_code == 404
    assert yours.request("DELETE", f"/training_runs/{model}/checkpoints/weights/a").status_code == 404
    assert yours.get("/checkpoints").json()["checkpoints"] == []
    assert yours.get("/training_runs").json()["training_runs"] == []
    assert yours.get("/sessions").json() == {"sessions": [yours_session]}
    # ... and none of it did any harm.
    assert "metrics" in mine.result(mine.optim_step(model, 2))


def test_someone_elses_result_cannot_be_fetched_or_cancelled(mine: Caller, yours: Caller, toy: ToyEngine):
    model, sampler = mine.model(), mine.sampler()
    toy.gate.clear()
    step = mine.optim_step(model, 1)
    request_id = mine.submit_sample(sampler)["request_id"]
    yours.refused("/retrieve_future", status=404, request_id=request_id)
    yours.ok("/cancel_future", request_id=request_id)
    toy.gate.set()
    mine.result(step)
    assert mine.retrieve(request_id).status_code == 200


def test_without_configured_keys_callers_are_still_kept_apart(served: Served):
    mine, yours, nobody = (served.caller(key) for key in ("tml-a", "tml-b", None))
    session = mine.session()
    for other in (yours, nobody):
        other.refused("/session_heartbeat", status=404, session_id=session)


def test_two_interleaved_tenants_train_as_each_would_alone(mine: Caller, yours: Caller, toy: ToyEngine):
    """Merged into the same engine calls, and still bit by bit the same."""
    runs = {mine: mine.model(), yours: yours.model()}
    lessons = {mine: [datum((1, 2), (3, 4))], yours: [datum((1, 5), (6, 7)), datum((2,), (2,))]}
    toy.gate.clear()
    for caller, model in runs.items():
        for step in range(3):
            caller.forward_backward(model, 2 * step + 1, lessons[caller])
            caller.optim_step(model, 2 * step + 2)
    toy.gate.set()
    for caller, model in runs.items():
        caller.save(model, 7, "end")
        alone = caller.model(number=1)
        for step in range(3):
            caller.forward_backward(alone, 2 * step + 1, lessons[caller])
            caller.result(caller.optim_step(alone, 2 * step + 2))
        assert np.array_equal(toy.run(model).table, toy.run(alone).table)
