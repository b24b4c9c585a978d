"""Order: training operations arrive as they were called, whoever calls and whatever fails."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import tinkerlite
from tests.client.scripted_server import HASTY, PENDING, Answer, ScriptedServer, eventually
from tinkerlite import errors
from tinkerlite.types import AdamParams, Datum, ModelInput

STEP = AdamParams(learning_rate=1e-4)


def datum(*tokens: int) -> Datum:
    return Datum(
        ModelInput.from_ints(tokens[:-1]),
        {"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)},
    )


def arrivals(server: ScriptedServer) -> list[tuple[str, int]]:
    """(path, seq_id) of all training operations, as they arrived."""
    return [
        (request.path, request.batch.seq_id if request.path == "forward_backward" else request.json["seq_id"])
        for request in server.received
        if request.path in ("forward_backward", "optim_step", "save_weights", "load_weights")
    ]


def test_operations_are_all_sent_before_any_is_waited_for(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    release = threading.Event()
    server.script("result of forward_backward-1", Answer(408, {}, after=release))
    update = training.forward_backward([datum(1, 2, 3)], "cross_entropy")
    step = training.optim_step(STEP)
    saved = training.save_state("after")
    step.result(), saved.result()
    assert not update.done()
    release.set()
    assert update.result().metrics["loss:sum"] == 2.0
    assert arrivals(server) == [("forward_backward", 1), ("optim_step", 2), ("save_weights", 3)]


def test_calls_from_several_threads_are_numbered_without_gaps_or_repeats(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    def pairs() -> None:
        for _ in range(5):
            training.forward_backward([datum(1, 2)], "cross_entropy")
            training.optim_step(STEP).result()

    threads = [threading.Thread(target=pairs) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [number for _, number in arrivals(server)] == list(range(1, 41))


def test_a_slow_submission_holds_up_those_behind_it_and_nothing_overtakes(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    server.script("forward_backward", Answer(503, {}), Answer(503, {}))
    futures = [training.forward_backward([datum(1, 2)], "cross_entropy"), training.optim_step(STEP)]
    for future in futures:
        future.result()
    assert arrivals(server) == [("forward_backward", 1)] * 3 + [("optim_step", 2)]


def test_a_large_batch_goes_in_chunks_and_comes_back_in_the_order_of_its_data(server: ScriptedServer):
    server.script("client/config", Answer(body={"fwdbwd_max_chunk_len": 2}))
    with tinkerlite.ServiceClient(base_url=server.url, config=HASTY) as service:
        training = service.create_lora_training_client("tiny")
        data = [datum(*range(length + 1)) for length in (1, 2, 3, 4, 5)]
        update = training.forward_backward(data, "cross_entropy")
        training.optim_step(STEP).result()
        output = update.result()
    assert [each["logprobs"].shape for each in output.loss_fn_outputs] == [[1], [2], [3], [4], [5]]
    assert output.metrics["loss:sum"] == 15.0
    assert arrivals(server) == [
        ("forward_backward", 1),
        ("forward_backward", 2),
        ("forward_backward", 3),
        ("optim_step", 4),
    ]
    assert [len(request.batch.data) for request in server.sent("forward_backward")] == [2, 2, 1]


def test_what_is_sent_is_what_the_arrays_held_when_the_call_was_made(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    weights = np.array([1.0, 1.0], dtype=np.float32)
    data = [Datum(ModelInput.from_ints([1, 2]), {"target_tokens": [2, 3], "weights": weights})]
    update = training.forward_backward(data, "cross_entropy")
    weights[:] = 7
    data.clear()
    update.result()
    [request] = server.sent("forward_backward")
    assert request.batch.data[0].loss_fn_inputs["weights"].data == [1.0, 1.0]


def test_after_a_refusal_the_next_operation_takes_the_next_number(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    server.script("forward_backward", Answer(400, {"detail": "data[0]: token 2 is out of vocabulary"}))
    with pytest.raises(errors.BadRequestError):
        training.forward_backward([datum(1, 2)], "cross_entropy").result()
    training.optim_step(STEP).result()
    assert arrivals(server) == [("forward_backward", 1), ("optim_step", 2)]


def test_a_body_too_large_to_be_read_uses_no_number_up(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    server.script("forward_backward", Answer(413, {"detail": "more than 64 MiB"}))
    with pytest.raises(errors.APIStatusError, match="64 MiB"):
        training.forward_backward([datum(1, 2)], "cross_entropy").result()
    training.optim_step(STEP).result()
    assert arrivals(server) == [("forward_backward", 1), ("optim_step", 1)]


@pytest.mark.parametrize(("status", "kind"), [(401, errors.AuthenticationError), (402, errors.BillingError)])
def test_a_step_turned_down_for_its_key_or_a_bill_uses_no_number_up_and_takes_along_what_follows(
    server: ScriptedServer, status: int, kind: type[errors.APIStatusError]
):
    config = dataclasses.replace(HASTY, billing_pause_seconds=0.1)
    server.script("client/config", Answer(body={"billing_exception_max_pause_duration_sec": 0.05}))
    with tinkerlite.ServiceClient(base_url=server.url, config=config) as service:
        training = service.create_lora_training_client("tiny")
        training.forward_backward([datum(1, 2)], "cross_entropy").result()
        server.script("optim_step", Answer(status, {"detail": "not with this"}))
        step = training.optim_step(STEP)
        with pytest.raises(errors.NotSubmittedError, match="not with this"):
            training.forward_backward([datum(1, 2)], "cross_entropy").result()
        with pytest.raises(kind):
            step.result()
        training.optim_step(STEP).result()
    assert arrivals(server) == [("forward_backward", 1), ("optim_step", 2), ("optim_step", 2)]


def test_who_has_stopped_waiting_has_not_heard_of_a_failure(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    """asyncio hands errors on to whoever waited once; a step sent for that would be on part of a batch."""
    refuse = threading.Event()
    server.script("forward_backward", Answer(413, {"detail": "more than 64 MiB"}, after=refuse))
    sent = training.forward_backward([datum(1, 2)], "cross_entropy")

    async def wait_in_vain() -> None:
        with pytest.raises(TimeoutError, match="no result within"):
            await sent.result_async(timeout=0.05)
        waiter = asyncio.ensure_future(sent.result_async())
        await asyncio.sleep(0.05)
        waiter.cancel()
        refuse.set()
        assert await asyncio.to_thread(eventually, sent.done)
        await asyncio.sleep(0.05)

    asyncio.run(wait_in_vain())
    with pytest.raises(errors.NotSubmittedError, match="64 MiB"):
        training.optim_step(STEP).result()


def test_nothing_behind_a_body_too_large_to_be_read_is_sent_until_the_caller_has_heard_of_it(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    """A server that never saw it cannot know that gradients are missing."""
    server.script("forward_backward", Answer(413, {"detail": "more than 64 MiB"}))
    update = training.forward_backward([datum(1, 2)], "cross_entropy")
    with pytest.raises(errors.NotSubmittedError, match="64 MiB"):
        training.optim_step(STEP).result()
    with pytest.raises(errors.APIStatusError, match="64 MiB"):
        update.result()
    training.optim_step(STEP).result()
    assert arrivals(server) == [("forward_backward", 1), ("optim_step", 1)]


def test_a_forward_too_large_to_be_read_takes_nothing_with_it_as_it_leaves_no_gradients(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    server.script("forward_backward", Answer(413, {"detail": "more than 64 MiB"}))
    training.forward([datum(1, 2)], "cross_entropy").future()
    training.optim_step(STEP).result()


@pytest.mark.parametrize("body", [b"<html>welcome to the hotel's wifi</html>", {"id": "x"}])
def test_after_an_answer_that_is_no_receipt_nothing_more_is_sent(
    server: ScriptedServer, training: tinkerlite.TrainingClient, body: object
):
    server.script("forward_backward", Answer(body=body))
    update = training.forward_backward([datum(1, 2)], "cross_entropy")
    with pytest.raises(errors.NotSubmittedError, match="may or may not hold it"):
        training.optim_step(STEP).result()
    with pytest.raises(errors.APIResponseValidationError):
        update.result()
    assert server.sent("optim_step") == []


def test_an_awaited_sampler_is_on_the_weights_from_before_what_was_called_after_it(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    server.script("save_weights_for_sampler", Answer(body={"request_id": "save"}))
    server.script("result of save", Answer(body={"sampling_session_id": "session:sample:7"}))

    async def at_once() -> tinkerlite.SamplingClient:
        loop, threads_are_free = asyncio.get_running_loop(), threading.Event()
        loop.set_default_executor(ThreadPoolExecutor(1))
        loop.run_in_executor(None, threads_are_free.wait)
        loop.call_later(0.2, threads_are_free.set)
        sampler, _, _ = await asyncio.gather(
            training.save_weights_and_get_sampling_client_async(),
            training.forward_backward_async([datum(1, 2)], "cross_entropy"),
            training.optim_step_async(STEP),
        )
        return sampler

    assert asyncio.run(at_once()).sampling_session_id == "session:sample:7"
    assert eventually(lambda: len(server.sent("optim_step")) == 1)
    assert server.sent("save_weights_for_sampler")[0].json["seq_id"] == 1
    assert arrivals(server) == [("forward_backward", 2), ("optim_step", 3)]


def test_a_chunk_too_large_to_be_read_ends_the_run_rather_than_let_it_wait(server: ScriptedServer):
    server.script("client/config", Answer(body={"fwdbwd_max_chunk_len": 1, "parallel_fwdbwd_chunks": True}))
    with tinkerlite.ServiceClient(base_url=server.url, config=HASTY) as service:
        training = service.create_lora_training_client("tiny")
        training.forward_backward([datum(1, 2)], "cross_entropy").result()
        server.script("forward_backward", Answer(413, {"detail": "more than 64 MiB"}))
        with pytest.raises(errors.APIStatusError, match="64 MiB"):
            training.forward_backward([datum(1, 2), datum(3, 4)], "cross_entropy").result()
        with pytest.raises(errors.NotSubmittedError):
            training.optim_step(STEP).result()


@pytest.mark.parametrize("value", [np.float32(1.0), float("nan"), {1, 2}, "\ud800"])
def test_what_json_cannot_say_is_refused_at_once_and_uses_no_number_up(
    server: ScriptedServer, training: tinkerlite.TrainingClient, value: object
):
    with pytest.raises(errors.InvalidRequest, match="save_state"):
        training.save_state("a", user_metadata={"value": value})  # pyright: ignore[reportArgumentType]
    training.optim_step(STEP).result()
    assert arrivals(server) == [("optim_step", 1)]


@pytest.mark.parametrize(
    ("tokens", "complaint"),
    [
        ([5, -1], "token 1 is -1, which is"),
        ([2**31], "token 0 is 2147483648, which is"),
        ([2**70], "a number as large as 1180"),
    ],
)
def test_a_number_that_is_no_token_id_is_refused_at_once_by_its_place_in_the_whole_batch(
    server: ScriptedServer, tokens: list[int], complaint: str
):
    server.script("client/config", Answer(body={"fwdbwd_max_chunk_len": 2}))
    with tinkerlite.ServiceClient(base_url=server.url, config=HASTY) as service:
        training = service.create_lora_training_client("tiny")
        bad = Datum(ModelInput.from_ints(tokens), {"target_tokens": [1] * len(tokens)})
        with pytest.raises(errors.InvalidDatum) as caught:
            training.forward_backward([datum(1, 2), datum(1, 2), datum(1, 2), bad], "cross_entropy")
        training.optim_step(STEP).result()
    assert str(caught.value).startswith(f"data[3].model_input.chunks[0]: {complaint}")
    assert arrivals(server) == [("optim_step", 1)]


def test_a_batch_refused_halfway_says_that_its_first_half_counts(server: ScriptedServer):
    server.script("client/config", Answer(body={"fwdbwd_max_chunk_len": 1}))
    with tinkerlite.ServiceClient(base_url=server.url, config=HASTY) as service:
        training = service.create_lora_training_client("tiny")
        training.forward_backward([datum(1, 2)], "cross_entropy").result()
        server.script("forward_backward", Answer(body={"request_id": "x"}), Answer(400, {"detail": "no"}))
        with pytest.raises(errors.BadRequestError) as caught:
            training.forward_backward([datum(1, 2), datum(3, 4)], "cross_entropy").result()
    assert caught.value.__notes__ == ["1 of 2 chunks of this batch were accepted; their gradients count."]


def test_once_the_server_is_lost_in_the_middle_of_a_submission_nothing_more_is_sent(server: ScriptedServer):
    config = dataclasses.replace(HASTY, reconnect_timeout_seconds=0.05)
    with tinkerlite.ServiceClient(base_url=server.url, config=config) as service:
        training = service.create_lora_training_client("tiny")
        server.script("forward_backward", *[Answer(drop=True)] * 20)
        update = training.forward_backward([datum(1, 2)], "cross_entropy")
        step = training.optim_step(STEP)
        with pytest.raises(errors.APIConnectionError):
            update.result()
        for later in (step, training.optim_step(STEP)):
            with pytest.raises(errors.NotSubmittedError, match="did not answer request 1"):
                later.result()
    assert server.sent("optim_step") == []


# ---- servers that know no protobuf ----


def test_a_server_that_refuses_protobuf_gets_json_under_the_same_number(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    in_json = {
        "loss_fn_output_type": "",
        "loss_fn_outputs": [{"logprobs": {"data": [-1.0, -2.0], "dtype": "float32", "shape": [2]}}],
        "metrics": {"total_loss:sum": 3.0},
    }
    server.script("forward_backward", Answer(415, {"detail": "JSON only"}), Answer(body={"request_id": "fb"}))
    server.script("result of fb", PENDING, Answer(body=in_json))
    output = training.forward_backward([datum(1, 2, 3)], "cross_entropy").result()
    assert output.loss_fn_outputs[0]["logprobs"].data == [-1.0, -2.0]
    assert output.metrics["loss:sum"] == 3.0
    refused, taken = server.sent("forward_backward")
    assert refused.batch.seq_id == taken.json["seq_id"] == 1
    [sent] = taken.json["forward_backward_input"]["data"]
    assert sent["loss_fn_inputs"]["target_tokens"] == {"data": [2, 3], "dtype": "int64", "shape": [2]}


def test_json_says_what_the_arrays_held_when_the_call_was_made_and_all_that_protobuf_can_say(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    mutated = threading.Event()
    server.script("forward_backward", Answer(415, {"detail": "JSON only"}, after=mutated))
    values = np.array([1.0, -np.inf], dtype=np.float32)
    data = [Datum(ModelInput.from_ints([1, 2]), {"target_tokens": [2, 3], "values": values})]
    training.forward_backward(data, "of_the_servers", {"clip": np.float32(0.5)}).future()
    values[:] = 7
    mutated.set()
    assert eventually(lambda: len(server.sent("forward_backward")) == 2)
    said = server.sent("forward_backward")[1].json["forward_backward_input"]
    assert said["data"][0]["loss_fn_inputs"]["values"]["data"] == [1.0, -np.inf]
    assert said["loss_fn_config"] == {"clip": 0.5}


@pytest.mark.parametrize("status", [415, 422, 500])
def test_a_server_that_reads_json_alone_gets_json_from_its_first_refusal_on(
    server: ScriptedServer, training: tinkerlite.TrainingClient, status: int
):
    taken = [Answer(body={"request_id": f"fb{number}"}) for number in range(2)]
    server.script("forward_backward", Answer(status, {"detail": "protobuf?"}), Answer(drop=True), *taken)
    result = Answer(body={"loss_fn_output_type": "", "loss_fn_outputs": [], "metrics": {"loss:sum": 1.0}})
    for number in range(2):
        server.script(f"result of fb{number}", result)
        training.forward_backward([datum(1, 2)], "cross_entropy").result()
    kinds = [request.headers["content-type"] for request in server.sent("forward_backward")]
    assert kinds == ["application/x-protobuf", *["application/json"] * 3]


def test_a_first_request_that_json_cannot_mend_either_is_repeated_in_protobuf_until_it_is_taken(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    hiccup, no_json = Answer(500, {"detail": "hiccup"}), Answer(415, {"detail": "protobuf only"})
    server.script("forward_backward", hiccup, no_json, hiccup)
    training.forward_backward([datum(1, 2)], "cross_entropy").result()
    assert [request.headers["content-type"] for request in server.sent("forward_backward")] == [
        "application/x-protobuf",
        "application/json",
        "application/x-protobuf",
        "application/x-protobuf",
    ]


def test_a_refusal_of_the_data_is_not_mistaken_for_one_of_protobuf(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    training.forward_backward([datum(1, 2)], "cross_entropy").result()
    server.script("forward_backward", Answer(422, {"detail": "data[0]: too long"}))
    with pytest.raises(errors.UnprocessableEntityError, match="too long"):
        training.forward_backward([datum(1, 2)], "cross_entropy").result()
    assert len(server.sent("forward_backward")) == 2
