"""Servers of any age: what older ones lack is done without, and what newer ones ask for is done."""

from __future__ import annotations

import dataclasses
import logging
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

import tinkerlite
from tests.client.scripted_server import HASTY, PENDING, Answer, ScriptedServer, protobuf
from tinkerlite import errors, types
from tinkerlite.retry import backoff_seconds
from tinkerlite.types import AdamParams, Datum, ForwardBackwardOutput, ModelInput, SamplingParams, TensorData
from tinkerlite.wire import encode_forward_backward_output

STEP = AdamParams(learning_rate=1e-4)
PROMPT = ModelInput.from_ints([1, 2, 3])
PARAMS = SamplingParams(max_tokens=2)
PATH = "tinker://old/weights/step"
REFUSED = Answer(422, {"detail": [{"loc": ["body", "model_id"], "msg": "Field required"}]})


def datum(length: int = 2) -> Datum:
    return Datum(ModelInput.from_ints([5] * length), {"target_tokens": [6] * length})


# ---- what is missing ----


def test_a_server_without_client_config_gets_its_chunks_one_after_the_other(server: ScriptedServer):
    server.script("client/config", Answer(404, {"detail": "Not Found"}))
    with tinkerlite.ServiceClient(base_url=server.url, config=HASTY) as service:
        training = service.create_lora_training_client("tiny")
        training.forward_backward([datum()], "cross_entropy").result()
        training.forward_backward([datum()] * 1025, "cross_entropy").result()
    assert [request.batch.seq_id for request in server.sent("forward_backward")] == [1, 2, 3]


@pytest.mark.parametrize("trained_on", ["tiny", "large"])
def test_a_server_that_takes_a_path_or_a_base_model_gets_the_path_if_it_is_of_that_model(
    server: ScriptedServer, service: tinkerlite.ServiceClient, trained_on: str
):
    refusal = Answer(400, {"detail": "Exactly one of base_model or model_path must be provided"})
    server.script("create_sampling_session", refusal, Answer(body={"sampling_session_id": "s"}))
    server.script("samplers/s", Answer(body={"sampler_id": "s", "base_model": trained_on}))
    if trained_on == "tiny":
        assert service.create_sampling_client(PATH, base_model="tiny").get_base_model() == "tiny"
    else:
        with pytest.raises(errors.BadRequestError, match="Exactly one"):
            service.create_sampling_client(PATH, base_model="tiny")
    both, alone = [request.json for request in server.sent("create_sampling_session")]
    assert (both["model_path"], both["base_model"]) == (PATH, "tiny")
    assert alone["model_path"] == PATH
    assert "base_model" not in alone


@pytest.mark.parametrize("status", [415, 422])
def test_a_server_that_takes_no_protobuf_gets_json_from_then_on(
    server: ScriptedServer, training: tinkerlite.TrainingClient, status: int
):
    output = {
        "loss_fn_output_type": "ArrayRecord",
        "loss_fn_outputs": [{"logprobs": {"data": [-1.0, -2.0], "dtype": "float32", "shape": [2]}}],
        "metrics": {"total_loss:sum": 3.0},
    }
    server.script("forward_backward", Answer(status, {"detail": "expected JSON"}))
    for request_id in ("forward_backward-1", "forward_backward-2"):
        server.script(f"result of {request_id}", Answer(body=output))
    first = training.forward_backward([datum()], "cross_entropy").result()
    training.forward_backward([datum()], "cross_entropy").result()
    kinds = [request.headers["content-type"] for request in server.sent("forward_backward")]
    assert kinds == ["application/x-protobuf", "application/json", "application/json"]
    [in_json, _] = [request.json for request in server.sent("forward_backward")[1:]]
    assert in_json["seq_id"] == 1
    assert in_json["forward_backward_input"]["loss_fn"] == "cross_entropy"
    assert first.metrics["loss:sum"] == 3.0
    assert first.loss_fn_outputs[0]["logprobs"].tolist() == [-1.0, -2.0]


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("optimizer", [False, True])
def test_a_server_that_loads_only_into_a_run_gets_the_run_first(
    server: ScriptedServer, service: tinkerlite.ServiceClient, status: int, optimizer: bool
):
    server.script("load_weights", Answer(status, REFUSED.body))
    saved = {"base_model": "tiny", "is_lora": True, "lora_rank": 4, "train_mlp": False}
    server.script("weights_info", Answer(body=saved))
    resume = (
        service.create_training_client_from_state_with_optimizer
        if optimizer
        else service.create_training_client_from_state
    )
    client = resume(PATH, user_metadata={"a": "b"})
    [made] = [request.json for request in server.sent("create_model")]
    assert (made["base_model"], made["lora_config"]) == ("tiny", {"rank": 4, "train_mlp": False})
    assert made["user_metadata"] == {"a": "b"}
    legacy = server.sent("load_weights")[1].json
    assert (legacy["model_id"], legacy["seq_id"]) == (client.model_id, 1)
    assert (legacy["path"], legacy["optimizer"]) == (PATH, optimizer)


def test_all_weights_are_asked_for_by_leaving_the_adapter_out(
    server: ScriptedServer, service: tinkerlite.ServiceClient
):
    service.create_training_client("tiny", user_metadata={"a": "b"})
    [made] = [request.json for request in server.sent("create_model")]
    assert made["base_model"] == "tiny"
    assert made["user_metadata"] == {"a": "b"}
    assert "lora_config" not in made


def test_an_adapter_is_no_answer_to_who_asked_for_all_weights(
    server: ScriptedServer, service: tinkerlite.ServiceClient
):
    info = {"model_id": "run", "model_data": {"model_name": "tiny"}, "is_lora": True, "lora_rank": 32}
    server.script("get_info", Answer(body=info), Answer(body=info))
    with pytest.raises(errors.CapabilityError, match="trains a LoRA adapter on 'tiny'"):
        service.create_training_client("tiny")


def test_weights_that_are_not_there_are_the_error_and_no_run_is_made(
    server: ScriptedServer, service: tinkerlite.ServiceClient
):
    server.script("load_weights", Answer(400, {"detail": "no such checkpoint"}))
    server.script("weights_info", Answer(404, {"detail": "unknown"}))
    with pytest.raises(errors.BadRequestError, match="no such checkpoint"):
        service.create_training_client_from_state(PATH)
    assert server.sent("create_model") == []


def test_pending_in_the_older_form_is_pending(server: ScriptedServer, sampler: tinkerlite.SamplingClient):
    older = Answer(body={"type": "try_again", "request_id": "asample-0", "queue_state": "active"})
    server.script("result of asample-0", older, PENDING)
    assert sampler.sample(PROMPT, 1, PARAMS).result().sequences[0].tokens == [1, 2]


def test_samples_without_names_are_samples(server: ScriptedServer, sampler: tinkerlite.SamplingClient):
    assert sampler.sample(PROMPT, 1, PARAMS).result().sequences[0].sequence_id == ""


@pytest.mark.parametrize(
    ("metrics", "elementwise"), [({"total_loss:sum": 3.0}, None), ({}, [1.0, 2.0]), ({"loss:sum": 3.0}, None)]
)
def test_the_loss_is_found_under_its_older_name_or_added_up(
    server: ScriptedServer,
    training: tinkerlite.TrainingClient,
    metrics: dict[str, float],
    elementwise: list[float] | None,
):
    arrays = {"logprobs": TensorData([-1.0, -2.0])}
    if elementwise is not None:
        arrays["elementwise_loss"] = TensorData(elementwise)
    output = ForwardBackwardOutput("ArrayRecord", [arrays], metrics)
    server.script("result of forward_backward-1", protobuf(encode_forward_backward_output(output)))
    answer = training.forward_backward([datum()], "cross_entropy").result()
    assert answer.metrics["loss:sum"] == 3.0


# ---- what is asked for ----


def test_chunks_go_side_by_side_and_the_first_arrives_last(server: ScriptedServer):
    server.script("client/config", Answer(body={"fwdbwd_max_chunk_len": 2}))
    with tinkerlite.ServiceClient(base_url=server.url, config=HASTY) as service:
        training = service.create_lora_training_client("tiny")
        training.forward_backward([datum()], "cross_entropy").result()
        update = training.forward_backward([datum(n) for n in range(1, 8)], "cross_entropy")
        step = training.optim_step(STEP)
        output = update.result()
        step.result()
    numbers = [request.batch.seq_id for request in server.sent("forward_backward")]
    assert numbers[0] == 1
    assert sorted(numbers[1:4]) == [3, 4, 5]
    assert numbers[4] == 2
    assert server.sent("optim_step")[0].json["seq_id"] == 6
    assert [each["logprobs"].shape for each in output.loss_fn_outputs] == [[n] for n in range(1, 8)]
    assert output.metrics == {"loss:sum": 28.0}


def test_a_refused_chunk_leaves_no_hole_in_the_numbers(server: ScriptedServer):
    server.script("client/config", Answer(body={"fwdbwd_max_chunk_len": 1}))
    with tinkerlite.ServiceClient(base_url=server.url, config=HASTY) as service:
        training = service.create_lora_training_client("tiny")
        training.forward_backward([datum()], "cross_entropy").result()
        server.script("forward_backward", Answer(400, {"detail": "token 9 is out of vocabulary"}))
        with pytest.raises(errors.BadRequestError, match="token 9"):
            training.forward_backward([datum()] * 3, "cross_entropy").result()
        training.optim_step(STEP).result()
    assert sorted(request.batch.seq_id for request in server.sent("forward_backward")) == [1, 2, 3, 4]
    assert server.sent("optim_step")[0].json["seq_id"] == 5


def test_an_unpaid_first_batch_is_waited_for_too_before_its_form_is_known(server: ScriptedServer):
    config = dataclasses.replace(HASTY, billing_pause_seconds=0.01)
    with tinkerlite.ServiceClient(base_url=server.url, config=config) as service:
        training = service.create_lora_training_client("tiny")
        server.script("forward_backward", *[Answer(402, {"detail": "no funds"})] * 2)
        training.forward_backward([datum()], "cross_entropy").result()
    assert [request.batch.seq_id for request in server.sent("forward_backward")] == [1, 1, 1]


@pytest.mark.parametrize("key", ["optim_step", "result of optim_step-1"])
def test_an_account_that_cannot_pay_is_waited_for(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture, key: str
):
    config = dataclasses.replace(HASTY, billing_pause_seconds=0.01)
    unpaid = Answer(402, {"detail": "no funds"})
    with tinkerlite.ServiceClient(base_url=server.url, config=config) as service:
        training = service.create_lora_training_client("tiny")
        server.script(key, unpaid, unpaid)
        with caplog.at_level(logging.WARNING, "tinkerlite"):
            training.optim_step(STEP).result()
    assert "no funds" in caplog.text


def test_but_not_for_longer_than_the_server_wants(server: ScriptedServer):
    config = dataclasses.replace(HASTY, billing_pause_seconds=0.01)
    server.script("client/config", Answer(body={"billing_exception_max_pause_duration_sec": 0.05}))
    with tinkerlite.ServiceClient(base_url=server.url, config=config) as service:
        training = service.create_lora_training_client("tiny")
        server.script("optim_step", *[Answer(402, {"detail": "no funds"})] * 100)
        with pytest.raises(errors.BillingError, match="no funds"):
            training.optim_step(STEP).result()
    assert len(server.sent("optim_step")) < 20


@pytest.mark.parametrize("key", ["optim_step", "result of optim_step-1"])
def test_the_wait_for_a_bill_is_not_one_for_a_server_that_is_away_or_stuck(server: ScriptedServer, key: str):
    config = dataclasses.replace(
        HASTY, billing_pause_seconds=0.1, reconnect_timeout_seconds=0.2, stuck_timeout_seconds=0.2
    )
    with tinkerlite.ServiceClient(base_url=server.url, config=config) as service:
        training = service.create_lora_training_client("tiny")
        server.script(key, *[Answer(402, {"detail": "no funds"})] * 4, Answer(503, {}))
        server.script("result of optim_step-1", PENDING)
        training.optim_step(STEP).result()


def test_nor_is_the_wait_for_a_server_that_is_away_one_for_a_bill(server: ScriptedServer):
    config = dataclasses.replace(HASTY, billing_pause_seconds=0.01)
    server.script("client/config", Answer(body={"billing_exception_max_pause_duration_sec": 0.1}))
    with tinkerlite.ServiceClient(base_url=server.url, config=config) as service:
        training = service.create_lora_training_client("tiny")
        server.script("optim_step", Answer(503, {}, {"Retry-After-Ms": "200"}), Answer(402, {}))
        training.optim_step(STEP).result()


def test_a_busy_server_is_asked_again_for_as_long_as_it_moves(server: ScriptedServer):
    """However long that takes: the budget for lost connections is not for it."""
    config = dataclasses.replace(HASTY, reconnect_timeout_seconds=0.05)
    busy = Answer(429, {"detail": "queue is full"}, {"Retry-After-Ms": "20"})
    with tinkerlite.ServiceClient(base_url=server.url, config=config) as service:
        sampler = service.create_sampling_client(base_model="tiny")
        server.script("asample", *[busy] * 10)
        assert sampler.sample(PROMPT, 1, PARAMS).result().sequences[0].tokens == [1, 2]
    sent = server.sent("asample")
    assert {request.json["seq_id"] for request in sent} == {0}
    assert len(sent) == 11
    assert sent[0].headers["x-tinker-sampling-backpressure"] == "1"


def test_while_it_is_busy_the_samplers_other_requests_wait_too(
    server: ScriptedServer, sampler: tinkerlite.SamplingClient
):
    server.script("asample", Answer(429, {}, {"Retry-After-Ms": "200"}))
    first = sampler.sample(PROMPT, 1, PARAMS)
    while not server.sent("asample"):
        pass
    import time

    started = time.monotonic()
    time.sleep(0.05)
    sampler.sample(PROMPT, 1, PARAMS).result()
    assert time.monotonic() - started > 0.1
    first.result()


@pytest.mark.parametrize("key", ["optim_step", "result of optim_step-1"])
def test_the_servers_advice_may_be_a_date(
    server: ScriptedServer, training: tinkerlite.TrainingClient, key: str
):
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    server.script(key, Answer(400, {"detail": "no"}, {"Retry-After": soon}))
    with pytest.raises(errors.BadRequestError) as caught:
        training.optim_step(STEP).result()
    assert 35 < backoff_seconds(1, 1.0, caught.value) <= 40


# ---- what official arguments become ----


def test_arguments_of_the_official_client_reach_the_server(server: ScriptedServer):
    with tinkerlite.ServiceClient(
        base_url=server.url, config=HASTY, default_headers_overrides={"X-Team": "blue"}
    ) as service:
        training = service.create_lora_training_client("tiny", optimizer=types.DimuonOptimizerConfig())
        training.optim_step(types.DimuonParams(learning_rate=0.1)).result()
        service.create_training_client_from_state(PATH, weights_access_token="t")
        sampler = service.create_sampling_client(base_model="tiny", record_stability_info=True)
        sampler.sample(PROMPT, 1, PARAMS).result()
        closing = service.close("success")
    assert closing.result() is None
    assert server.received[0].headers["x-team"] == "blue"
    assert server.sent("create_model")[0].json["optimizer_config"] == {"type": "dimuon", "version": 1}
    step = server.sent("optim_step")[0].json
    assert "adam_params" not in step
    assert step["optimizer_params"] == {
        "type": "dimuon",
        "learning_rate": 0.1,
        "grad_clip_norm": 0.0,
        "beta1": 0.9,
    }
    assert server.sent("load_weights")[0].json["weights_access_token"] == "t"
    assert server.sent("asample")[0].json["record_stability_info"] is True


def test_weights_are_exported_in_the_line_of_all_operations(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    server.script("save_weights_external", Answer(body={"request_id": "optim_step-1"}))
    training.optim_step(STEP).result()
    server.script("result of optim_step-1", Answer(body={"path": "tinker://r/external_weights/e"}))
    saved = training.save_weights_external(
        "e", ttl_seconds=3600, age_encryption_recipients=["age1x"]
    ).result()
    assert saved.path == "tinker://r/external_weights/e"
    [request] = server.sent("save_weights_external")
    assert request.json == {
        "model_id": training.model_id,
        "seq_id": 2,
        "type": "save_weights_external",
        "path": "e",
        "ttl_seconds": 3600,
        "age_encryption_recipients": ["age1x"],
    }
