"""Waiting for results: every answer that `retrieve_future` can give."""

from __future__ import annotations

import dataclasses
import threading
import time

import httpx
import pytest

import tinkerlite
from tests.client.scripted_server import HASTY, PENDING, Answer, ScriptedServer, protobuf, sampled
from tinkerlite import errors
from tinkerlite.polling import Pace
from tinkerlite.types import AdamParams, ModelInput, SamplingParams
from tinkerlite.wire import encode_sample_response

STEP = AdamParams(learning_rate=1e-4)
PROMPT = ModelInput.from_ints([1, 2, 3])
DONE = Answer(body={"metrics": {"grad_norm": 0.5}})
RESULT = "result of optim_step-1"  # request 0 made the run


@pytest.mark.parametrize(
    "trouble",
    [
        PENDING,
        Answer(408, b""),
        Answer(body={"type": "try_again", "queue_state": "paused_capacity"}),
        Answer(body={"status": "complete_metadata", "response_payload_size": 12}),
        Answer(429, {}, {"Retry-After": "0"}),
        Answer(500, {"detail": "oops"}),
        Answer(drop=True),
    ],
)
def test_whatever_is_no_result_is_asked_about_again(
    server: ScriptedServer, training: tinkerlite.TrainingClient, trouble: Answer
):
    server.script(RESULT, trouble, DONE)
    assert training.optim_step(STEP).result().metrics == {"grad_norm": 0.5}


def test_a_server_that_never_sends_the_result_itself_is_not_asked_for_ever(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    size = Answer(body={"status": "complete_metadata", "response_payload_size": 12})
    server.script(RESULT, size, size)
    with pytest.raises(errors.APIResponseValidationError, match="size"):
        training.optim_step(STEP).result()


@pytest.mark.parametrize(
    ("sent", "category"), [("user", "user"), ("server", "server"), (None, "unknown"), ("cosmic", "unknown")]
)
def test_a_failed_request_raises_with_the_servers_words_and_whose_fault_it_was(
    server: ScriptedServer, training: tinkerlite.TrainingClient, sent: str | None, category: str
):
    server.script(RESULT, Answer(body={"error": "data[3]: token 99 is out of vocabulary", "category": sent}))
    with pytest.raises(errors.RequestFailedError, match=r"data\[3\]: token 99") as caught:
        training.optim_step(STEP).result()
    assert (caught.value.category, caught.value.request_id) == (category, "optim_step-1")


def test_a_training_result_that_the_server_lost_is_an_error(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    server.script(RESULT, Answer(410, {"detail": "evicted"}))
    with pytest.raises(errors.ResultGoneError):
        training.optim_step(STEP).result()


@pytest.mark.parametrize("status", [410, 404])
def test_a_sample_that_the_server_lost_is_drawn_anew(
    server: ScriptedServer, sampler: tinkerlite.SamplingClient, status: int
):
    server.script("result of asample-0", Answer(status, {"detail": "evicted, or lost in a restart"}))
    response = sampler.sample(PROMPT, 1, SamplingParams(max_tokens=2)).result()
    assert response.sequences[0].tokens == [1, 2]
    assert [request.json["seq_id"] for request in server.sent("asample")] == [0, 1]


def test_a_refused_poll_is_final(server: ScriptedServer, training: tinkerlite.TrainingClient):
    server.script(RESULT, Answer(404, {"detail": "no such request"}))
    with pytest.raises(errors.NotFoundError) as caught:
        training.optim_step(STEP).result()
    assert "restarted" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    "garbage", [Answer(body=b"\xff\xfe"), Answer(body={"metrics": 7}), protobuf(b"\x08")]
)
def test_a_result_that_cannot_be_read_is_said_to_be_so(
    server: ScriptedServer, training: tinkerlite.TrainingClient, garbage: Answer
):
    server.script(RESULT, garbage)
    with pytest.raises(errors.APIResponseValidationError):
        training.optim_step(STEP).result()


def test_garbage_in_protobuf_is_said_to_be_so(server: ScriptedServer, sampler: tinkerlite.SamplingClient):
    server.script("result of asample-0", protobuf(b"\x0a\xff"))
    with pytest.raises(errors.APIResponseValidationError, match="sample"):
        sampler.sample(PROMPT, 1, SamplingParams()).result()


def test_results_in_json_are_read_as_those_in_protobuf_are(
    server: ScriptedServer, sampler: tinkerlite.SamplingClient
):
    in_json = {
        "type": "sample",
        "sequences": [{"stop_reason": "stop", "tokens": [1, 2], "logprobs": [-0.5, -0.5]}],
    }
    server.script("result of asample-0", Answer(body=in_json))
    server.script("result of asample-1", protobuf(encode_sample_response(sampled([1, 2]))))
    one, other = (sampler.sample(PROMPT, 1, SamplingParams()).result().sequences[0] for _ in range(2))
    assert (one.tokens, one.logprobs, one.stop_reason) == (other.tokens, other.logprobs, other.stop_reason)


def test_a_request_that_never_moves_raises_and_names_the_state_of_the_queue(server: ScriptedServer):
    config = dataclasses.replace(HASTY, stuck_timeout_seconds=0.2)
    with tinkerlite.ServiceClient(base_url=server.url, config=config) as service:
        training = service.create_lora_training_client("tiny")
        paused = Answer(408, {"queue_state": "paused_capacity", "queue_state_reason": "all slots are taken"})
        server.script(RESULT, *[paused] * 100)
        with pytest.raises(errors.StuckRequestError, match=r"paused_capacity \(all slots are taken\)"):
            training.optim_step(STEP).result()


def test_a_server_that_says_it_is_at_work_has_longer(server: ScriptedServer):
    """One operation of a large model on a slow machine takes longer than a queue should stand still."""
    config = dataclasses.replace(HASTY, stuck_timeout_seconds=0.1, active_timeout_seconds=2.0)
    with tinkerlite.ServiceClient(base_url=server.url, config=config) as service:
        training = service.create_lora_training_client("tiny")
        server.script(RESULT, PENDING, Answer(408, {"queue_state": "active"}, after=later(0.2)), DONE)
        assert training.optim_step(STEP).result().metrics == {"grad_norm": 0.5}
        server.script("result of optim_step-2", *[PENDING] * 100)
        with pytest.raises(errors.StuckRequestError, match=r"raise ClientConfig\.active_timeout_seconds"):
            training.optim_step(STEP).result()


def later(seconds: float) -> threading.Event:
    """An event that is set by then."""
    event = threading.Event()
    threading.Timer(seconds, event.set).start()
    return event


def test_the_time_in_which_the_server_was_away_is_not_one_in_which_nothing_moved(server: ScriptedServer):
    config = dataclasses.replace(HASTY, stuck_timeout_seconds=0.2)
    away = Answer(503, {}, {"Retry-After-Ms": "150"})
    with tinkerlite.ServiceClient(base_url=server.url, config=config) as service:
        training = service.create_lora_training_client("tiny")
        server.script(RESULT, PENDING, away, away, PENDING, DONE)
        assert training.optim_step(STEP).result().metrics == {"grad_norm": 0.5}


def test_a_process_that_was_suspended_during_a_poll_asks_again():
    """Ctrl-Z for ten minutes: the poll ends with its timeout, and the server was there all the time."""
    pace = Pace(tinkerlite.ClientConfig(poll_timeout_seconds=45.0, reconnect_timeout_seconds=300.0))
    error = errors.APIConnectionError(httpx.Request("POST", "http://there"), "no answer")
    for _ in range(5):  # 45 s each, and pauses of 1, 2, 4, 8 and 16
        pace.after_failure(error, time.monotonic() - 600, "sample")
    with pytest.raises(errors.APIConnectionError, match="no answer"):
        pace.after_failure(error, time.monotonic() - 600, "sample")


def test_a_long_queue_that_moves_is_not_stuck(server: ScriptedServer):
    config = dataclasses.replace(HASTY, stuck_timeout_seconds=1.2)
    with tinkerlite.ServiceClient(base_url=server.url, config=config) as service:
        training = service.create_lora_training_client("tiny")
        release = [threading.Event() for _ in range(4)]
        for number, event in enumerate(release, start=1):
            server.script(f"result of optim_step-{number}", Answer(408, {}, after=event), DONE)
        steps = [training.optim_step(STEP) for _ in release]
        for event, step in zip(release, steps, strict=True):
            event.wait(0.4)  # four of these are longer than the limit
            event.set()
            assert step.result().metrics == {"grad_norm": 0.5}


def test_quick_pending_answers_slow_the_client_down_and_held_ones_do_not():
    pace = Pace(HASTY)
    assert [pace.after_pending(held_seconds=0.01) for _ in range(6)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0]
    assert pace.after_pending(held_seconds=25) == 0
    assert pace.after_pending(held_seconds=0.01) == 0.05


def test_the_user_hears_what_is_being_waited_for(
    server: ScriptedServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.delenv("TINKERLITE_NO_PROGRESS", raising=False)
    config = dataclasses.replace(HASTY, progress_after_seconds=0.05)
    with tinkerlite.ServiceClient(base_url=server.url, config=config) as service:
        training = service.create_lora_training_client("tiny")
        server.script(RESULT, *[Answer(408, {"queue_state": "paused_rate_limit"})] * 3, DONE)
        training.optim_step(STEP).result()
    said = capfd.readouterr().err
    assert "waiting for optim_step" in said
    assert "paused_rate_limit" in said


def test_one_variable_silences_that(
    server: ScriptedServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TINKERLITE_NO_PROGRESS", "1")
    config = dataclasses.replace(HASTY, progress_after_seconds=0.05)
    with tinkerlite.ServiceClient(base_url=server.url, config=config) as service:
        training = service.create_lora_training_client("tiny")
        server.script(RESULT, *[PENDING] * 3, DONE)
        training.optim_step(STEP).result()
    assert capfd.readouterr().err == ""
