from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.server.served import Caller, datum, serving
from tests.server.toy_engine import ToyEngine, base_table, log_softmax
from tinkerlite.types import ForwardBackwardRequest
from tinkerlite.wire import PROTOBUF_CONTENT_TYPE, encode_forward_backward_request
from tinkerlite.wire import messages_pb2 as pb
from tinkerlite_server.errors import EngineFailure
from tinkerlite_server.settings import Limits


def test_forward_backward_answers_in_the_order_of_the_data(caller: Caller):
    data = [datum((1, 2), (2, 3)), datum((4, 5, 6), (5, 6, 7))]
    output = caller.gradients(caller.forward_backward(caller.model(), 1, data))
    full = log_softmax(base_table("toy"))
    expected = [full[[1, 2], [2, 3]], full[[4, 5, 6], [5, 6, 7]]]
    for got, want in zip(output.loss_fn_outputs, expected, strict=True):
        np.testing.assert_allclose(got["logprobs"].to_numpy(), want, rtol=1e-6)
        np.testing.assert_allclose(got["elementwise_loss"].to_numpy(), -want, rtol=1e-6)
    assert output.metrics["loss:sum"] == pytest.approx(-sum(each.sum() for each in expected))


def test_many_targets_a_token_give_logprobs_of_their_shape_and_one_loss_a_position(caller: Caller):
    data = [datum((1, 2), [[2, 3], [3, 4]], weights=[[0.5, 0.5], [1.0, 0.0]])]
    [output] = caller.gradients(caller.forward_backward(caller.model(), 1, data)).loss_fn_outputs
    assert output["logprobs"].shape == [2, 2]
    assert output["elementwise_loss"].shape == [2]


def test_provenance_is_read_over(caller: Caller):
    model = caller.model()
    plain = ForwardBackwardRequest(model_id=model, seq_id=1, data=[datum()], loss_fn="cross_entropy")
    message = pb.ForwardBackwardRequest.FromString(encode_forward_backward_request(plain))
    for spans in (message.data[0].model_input_spans, message.data[0].loss_fn_input_spans):
        spans.add().prompt_tokens.sequence_id = "nobody's"
        spans.add().sampled_tokens.length = 2
    headers = {"Content-Type": PROTOBUF_CONTENT_TYPE}
    body = message.SerializeToString()
    accepted = caller.request("POST", "/forward_backward", content=body, headers=headers).json()
    assert (
        caller.gradients(accepted["request_id"]).metrics
        == caller.gradients(caller.forward_backward(model, 2)).metrics
    )


def test_stable_reinforce_is_refused_with_what_to_train_with_instead(caller: Caller):
    response = caller.post_forward_backward(caller.model(), 1, loss_fn="stable_reinforce")
    assert response.status_code == 400
    assert "the objective of stable_reinforce is not published" in response.json()["detail"]
    assert "importance_sampling" in response.json()["detail"]


def test_a_step_moves_the_weights_the_way_of_the_targets(caller: Caller):
    model = caller.model()
    before = caller.gradients(caller.forward_backward(model, 1)).metrics["loss:sum"]
    assert caller.result(caller.optim_step(model, 2))["metrics"]["grad_norm"] > 0
    after = caller.gradients(caller.forward_backward(model, 3, forward_only=True)).metrics["loss:sum"]
    assert after < before


def test_forward_only_leaves_the_gradients_alone(caller: Caller, toy: ToyEngine):
    model = caller.model()
    caller.gradients(caller.forward_backward(model, 1, forward_only=True))
    assert not toy.run(model).gradient.any()


def test_operations_sent_before_any_is_awaited_run_in_order(caller: Caller, toy: ToyEngine):
    model = caller.model()
    requests = [
        caller.forward_backward(model, 1),
        caller.forward_backward(model, 2),
        caller.optim_step(model, 3),
    ]
    caller.result(requests[-1])
    verbs = [call[0] for call in toy.calls if call[0] in ("forward_backward", "optim_step")]
    assert verbs == ["forward_backward", "forward_backward", "optim_step"]


def test_chunks_that_arrive_out_of_order_are_accepted_and_run_in_order(caller: Caller, toy: ToyEngine):
    model = caller.model()
    late = [caller.forward_backward(model, seq, [datum((seq,), (seq,))]) for seq in (2, 3, 4)]
    step = caller.optim_step(model, 5)
    first = caller.forward_backward(model, 1, [datum((1,), (1,))])
    assert caller.result(step)["metrics"]["step"] == 1.0
    for request_id in (first, *late):
        caller.gradients(request_id)
    assert [call[0] for call in toy.calls].count("forward_backward") == 4


def test_a_request_sent_again_is_run_once_and_gives_the_same_answer(caller: Caller, toy: ToyEngine):
    model = caller.model()
    first, again = caller.forward_backward(model, 1), caller.forward_backward(model, 1)
    assert first == again
    assert caller.retrieve(first).content == caller.retrieve(again).content
    step, step_again = caller.optim_step(model, 2), caller.optim_step(model, 2)
    assert step == step_again
    assert caller.result(step)["metrics"]["step"] == 1.0
    caller.result(caller.optim_step(model, 3))
    assert [call[0] for call in toy.calls].count("forward_backward") == 1


def test_a_number_used_again_with_other_content_is_refused(caller: Caller):
    model = caller.model()
    caller.forward_backward(model, 1)
    response = caller.post_forward_backward(model, 1, [datum((5,), (6,))])
    assert response.status_code == 400
    assert "other content" in response.json()["detail"]
    # ... and that refusal does not spoil the run.
    assert "metrics" in caller.result(caller.optim_step(model, 2))


def test_a_refused_request_uses_up_its_number(caller: Caller):
    model = caller.model()
    response = caller.post_forward_backward(model, 1, [datum((1,), (99,))], forward_only=True)
    assert response.status_code == 400
    assert response.json()["detail"].startswith(f"forward_backward 1 of {model}: data[0].loss_fn_inputs")
    assert "metrics" in caller.result(caller.optim_step(model, 2))


def test_no_step_is_taken_when_part_of_the_batch_was_refused(caller: Caller, toy: ToyEngine):
    model = caller.model()
    fine = caller.forward_backward(model, 1)
    assert caller.post_forward_backward(model, 2, []).status_code == 400
    step = caller.optim_step(model, 3)
    caller.gradients(fine)
    message, category = caller.failure(step)
    assert "forward_backward 2 was refused" in message
    assert "data is empty" in message
    assert category == "user"
    assert toy.run(model).steps == 0
    caller.forward_backward(model, 4)
    assert caller.result(caller.optim_step(model, 5))["metrics"]["step"] == 1.0


def test_refused_optimizer_settings_use_up_their_number_too(caller: Caller):
    model = caller.model()
    bad = {"model_id": model, "seq_id": 1, "adam_params": {"learning_rate": -1.0}}
    assert caller.refused("/optim_step", **bad) == (
        f"optim_step 1 of {model}: adam_params.learning_rate: "
        "Input should be greater than or equal to 0 (it is -1.0)"
    )
    assert "metrics" in caller.result(caller.optim_step(model, 2))


def test_text_among_the_options_of_a_loss_is_read_and_not_dropped(caller: Caller):
    """Numbers travel in two maps and text in the newer one alone."""
    response = caller.post_forward_backward(
        caller.model(), 1, loss_fn="dro", loss_fn_config={"reduction": "mean", "beta": 1.0}
    )
    assert response.status_code == 400
    assert "reduction" in response.json()["detail"]


def test_gradients_are_gone_after_a_step(caller: Caller, toy: ToyEngine):
    model = caller.model()
    caller.forward_backward(model, 1)
    assert caller.result(caller.optim_step(model, 2))["metrics"]["grad_norm"] > 0
    assert caller.result(caller.optim_step(model, 3))["metrics"]["grad_norm"] == 0.0


def test_adamw_settings_come_under_either_name(caller: Caller):
    model = caller.model()
    params = {"type": "adamw", "learning_rate": 0.5, "grad_clip_norm": 1.0}
    answer = caller.ok("/optim_step", model_id=model, seq_id=1, optimizer_params=params)
    assert caller.result(answer["request_id"])["metrics"]["step"] == 1.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "send either adam_params, or optimizer_params"),
        ({"adam_params": {}, "optimizer_params": {"type": "adamw"}}, "send either adam_params, or"),
        (
            {"optimizer_params": {"type": "dimuon", "learning_rate": 0.1, "beta1": 0.9}},
            "optimizer_params are of type 'dimuon', and every run here has the optimizer 'adamw'",
        ),
        ({"optimizer_params": {"learning_rate": 0.1}}, "optimizer_params are of type None"),
        ({"optimizer_params": {"type": ["adamw"]}}, "optimizer_params are of type ['adamw']"),
        (
            {"optimizer_params": {"type": "adamw", "beta1": 1.0}},
            "optimizer_params.beta1: Input should be less than 1",
        ),
        ({"optimizer_params": {"type": "adamw", "momentum": 1}}, "optimizer_params.momentum: Extra inputs"),
        ({"adam_params": {"momentum": 1}}, "adam_params.momentum: Extra inputs"),
    ],
)
def test_settings_of_another_optimizer_are_refused_by_name(
    lasting_caller: Caller, fields: dict[str, object], message: str
):
    model = lasting_caller.model()
    assert message in lasting_caller.refused("/optim_step", model_id=model, seq_id=1, **fields)
    assert "metrics" in lasting_caller.result(lasting_caller.optim_step(model, 2))


def test_a_failure_of_the_engine_is_a_failed_future_of_the_server(caller: Caller, toy: ToyEngine):
    model = caller.model()
    toy.failures[f"forward_backward of {model}"] = EngineFailure("out of memory")
    assert caller.failure(caller.forward_backward(model, 1)) == ("out of memory", "server")


def test_operations_without_a_number_run_as_they_come(caller: Caller):
    model = caller.model()
    for _ in range(2):
        caller.gradients(caller.forward_backward(model, 0))
    answer = caller.ok("/optim_step", model_id=model, adam_params={})
    assert caller.result(answer["request_id"])["metrics"]["step"] == 1.0


def test_a_run_with_too_many_waiting_operations_asks_for_patience(toy: ToyEngine, tmp_path: Path):
    with serving(toy, tmp_path, limits=Limits(max_queued_operations=2)) as served:
        caller = served.caller()
        model = caller.model()
        toy.gate.clear()
        requests = [caller.optim_step(model, seq) for seq in (1, 2)]
        response = caller.post("/optim_step", model_id=model, seq_id=3, adam_params={})
        toy.gate.set()
        assert response.status_code == 429
        assert response.headers["retry-after"] == "1"
        for request_id in requests:
            caller.result(request_id)
        # The number was not used up: the same request goes through later.
        assert "metrics" in caller.result(caller.optim_step(model, 3))


# ---- other forms ----


def json_batch(**datum_fields: object) -> dict[str, object]:
    inputs = {"target_tokens": {"data": [2, 3], "dtype": "int64"}}
    return {
        "data": [
            {
                "model_input": {"chunks": [{"type": "encoded_text", "tokens": [1, 2]}]},
                "loss_fn_inputs": inputs | datum_fields,
            }
        ],
        "loss_fn": "cross_entropy",
    }


def test_json_in_and_out_says_the_same_as_protobuf(caller: Caller):
    model = caller.model()
    answer = caller.ok("/forward_backward", model_id=model, seq_id=1, forward_backward_input=json_batch())
    response = caller.post("/retrieve_future", request_id=answer["request_id"])
    as_json = response.json()["loss_fn_outputs"][0]["logprobs"]
    as_protobuf = caller.gradients(answer["request_id"]).loss_fn_outputs[0]["logprobs"]
    assert (as_json["data"], as_json["shape"]) == (as_protobuf.data, as_protobuf.shape)


def test_the_older_forward_route_computes_no_gradients(caller: Caller, toy: ToyEngine):
    model = caller.model()
    answer = caller.ok("/forward", model_id=model, seq_id=1, forward_input=json_batch())
    caller.gradients(answer["request_id"])
    assert not toy.run(model).gradient.any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": {"data": ["a"], "dtype": "float32"}}, r"data[0].loss_fn_inputs['weights']"),
        ({"weights": {"data": [1.0], "dtype": "int32"}}, "weights.dtype"),
        ({"weights": {"data": [1.0], "dtype": "float32", "shape": [2]}}, "do not fill shape"),
    ],
)
def test_json_tensors_are_checked_like_others_and_use_up_their_number(
    caller: Caller, fields: dict[str, object], message: str
):
    model = caller.model()
    batch = json_batch(**fields)
    assert message in caller.refused(
        "/forward_backward", model_id=model, seq_id=1, forward_backward_input=batch
    )
    message, _ = caller.failure(caller.optim_step(model, 2))
    assert "forward_backward 1 was refused" in message


def test_bytes_that_are_no_message_are_refused(caller: Caller):
    headers = {"Content-Type": "application/x-protobuf"}
    response = caller.request("POST", "/forward_backward", content=b"\xff\xff", headers=headers)
    assert response.status_code == 400
    assert "not a ForwardBackwardRequest" in response.json()["detail"]


def test_a_message_that_cannot_be_decoded_uses_its_number_up(caller: Caller):
    model = caller.model()
    request = ForwardBackwardRequest(model_id=model, seq_id=1, data=[datum()], loss_fn="cross_entropy")
    message = pb.ForwardBackwardRequest.FromString(encode_forward_backward_request(request))
    message.data[0].model_input[0].encoded_text.tokens = b"odd"
    headers = {"Content-Type": PROTOBUF_CONTENT_TYPE}
    refused = caller.request(
        "POST", "/forward_backward", content=message.SerializeToString(), headers=headers
    )
    assert refused.status_code == 400
    assert f"forward_backward 1 of {model}: data[0].model_input[0]" in refused.json()["detail"]
    failure, _ = caller.failure(caller.optim_step(model, 2))
    assert "forward_backward 1" in failure
    caller.gradients(caller.forward_backward(model, 3))
