from __future__ import annotations

import re
from pathlib import Path

from tests.server.served import Caller, serving
from tests.server.toy_engine import ToyEngine
from tinkerlite_server.app import STATUSES
from tinkerlite_server.errors import ServerError
from tinkerlite_server.settings import Limits


def test_a_pending_request_is_held_and_then_says_what_it_waits_for(toy: ToyEngine, tmp_path: Path):
    with serving(toy, tmp_path, limits=Limits(poll_seconds=0.01)) as served:
        caller = served.caller()
        session = caller.session()
        created = caller.submit_model(session)
        while caller.retrieve(created).status_code == 408:
            pass
        model = f"{session}:train:0"
        response = caller.retrieve(caller.optim_step(model, 2))
        assert response.status_code == 408
        assert response.json() == {
            "queue_state": "active",
            "queue_state_reason": f"operation 2 of {model} waits for 1, which has not arrived",
        }


def test_a_poll_is_answered_the_moment_the_result_is_there(caller: Caller, toy: ToyEngine):
    """The hold is 25 s and the suite's limit is not: an answer means that the waiter was woken."""
    model = caller.model()
    assert "metrics" in caller.result(caller.optim_step(model, 1))


def test_results_say_in_the_standard_header_how_long_they_were_queued_and_how_long_the_engine_took(
    caller: Caller,
):
    model, sampler = caller.model(), caller.sampler()
    caller.post_forward_backward(model, 1, loss_fn="nonsense")  # so that the next step fails
    for request_id in (
        caller.submit_sample(sampler)["request_id"],
        caller.optim_step(model, 2),
        caller.forward_backward(model, 3),
    ):
        timing = caller.retrieve(request_id).headers["server-timing"]
        found = re.fullmatch(r"queue;dur=(\d+\.\d{3}), engine;dur=(\d+\.\d{3})", timing)
        assert found, timing
        assert all(0 <= float(milliseconds) < 30e3 for milliseconds in found.groups())


def test_an_unknown_request_is_not_found(caller: Caller):
    assert "there is no request 'nothing'" in caller.refused(
        "/retrieve_future", status=404, request_id="nothing"
    )


def test_a_request_id_that_is_no_text_is_refused(caller: Caller):
    assert "request_id" in caller.refused("/retrieve_future", request_id=5)


def test_a_result_that_was_let_go_is_gone_and_not_unknown(toy: ToyEngine, tmp_path: Path):
    with serving(toy, tmp_path, limits=Limits(result_seconds=0.0)) as served:
        caller = served.caller()
        request_id = caller.submit_model(caller.session())
        caller.result(request_id)
        served.service.sweep()
        assert "is gone" in caller.refused("/retrieve_future", status=410, request_id=request_id)


def test_after_its_result_is_gone_an_operation_still_cannot_run_twice(toy: ToyEngine, tmp_path: Path):
    with serving(toy, tmp_path, limits=Limits(result_seconds=0.0)) as served:
        caller = served.caller()
        model = caller.model()
        caller.result(caller.optim_step(model, 1))
        served.service.sweep()
        body = {"model_id": model, "seq_id": 1, "adam_params": {"learning_rate": 0.5}}
        assert "was used before" in caller.refused("/optim_step", **body)
        assert toy.run(model).steps == 1


def test_metadata_only_is_an_offer_that_this_server_does_not_take(caller: Caller):
    request_id = caller.submit_model(caller.session())
    answer = caller.ok("/retrieve_future", request_id=request_id, allow_metadata_only=True)
    assert answer["type"] == "create_model"


def test_held_polls_end_when_the_server_stops(toy: ToyEngine, tmp_path: Path):
    with serving(toy, tmp_path) as served:
        caller = served.caller()
        pending = caller.optim_step(caller.model(), 2)
        served.service.begin_shutdown()
        assert caller.retrieve(pending).status_code == 408


def test_a_poll_is_held_long_enough_not_to_spin_and_shorter_than_clients_wait():
    """Clients ask again at once after a 408, and give up a poll at 45 s."""
    assert 20 <= Limits().poll_seconds <= 30


def test_request_ids_are_text_as_clients_insist(caller: Caller):
    model, sampler = caller.model(), caller.sampler()
    for request_id in (
        caller.forward_backward(model, 1),
        caller.optim_step(model, 2),
        caller.submit_sample(sampler)["request_id"],
    ):
        assert isinstance(request_id, str)


def test_no_error_is_answered_with_a_status_that_clients_repeat_for_minutes():
    assert {400, 404, 410} <= set(STATUSES.values())
    assert not {408, 409} & set(STATUSES.values())
    assert [kind for kind, status in STATUSES.items() if status >= 500] == [ServerError]
