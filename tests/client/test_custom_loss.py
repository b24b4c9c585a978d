"""Losses in torch on the client's side: two passes, in the line of all other operations."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import tinkerlite
from tests.client.scripted_server import Answer, ScriptedServer, eventually
from tinkerlite import errors
from tinkerlite.types import AdamParams, Datum, ModelInput

STEP = AdamParams(learning_rate=1e-4)
DATA = [Datum(ModelInput.from_ints([5, 6]), {"target_tokens": [6, 7], "bonus": [1.0, 3.0]})]


def squared(data: list[Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    """C = sum of bonus * lp^2, so dC/dlp = 2 * bonus * lp."""
    bonus = data[0].loss_fn_inputs["bonus"].to_torch()
    return (bonus * logprobs[0] ** 2).sum(), {"bonus:mean": 2.0}


def test_the_second_pass_weighs_each_token_by_minus_the_gradient(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    output = training.forward_backward_custom(DATA, squared).result()
    first, second = (request.batch for request in server.sent("forward_backward"))
    assert (first.forward_only, second.forward_only) == (True, False)
    assert sorted(first.data[0].loss_fn_inputs) == ["target_tokens", "weights"]
    # The scripted server says that every logprob is -1: dC/dlp = 2 * [1, 3] * -1.
    assert second.data[0].loss_fn_inputs["weights"].data == [2.0, 6.0]
    assert output.metrics == {"loss:sum": 4.0, "bonus:mean": 2.0, "surrogate_loss:sum": 2.0}


def test_what_is_called_after_it_is_sent_after_its_second_pass(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    update = training.forward_backward_custom(DATA, squared)
    training.optim_step(STEP).result()
    update.result()
    numbers = [request.batch.seq_id for request in server.sent("forward_backward")]
    assert (numbers, server.sent("optim_step")[0].json["seq_id"]) == ([1, 2], 3)


def test_if_it_fails_what_stood_behind_it_is_not_sent_and_later_calls_are(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    update = training.forward_backward_custom(DATA, broken)
    step = training.optim_step(STEP)
    with pytest.raises(ZeroDivisionError):
        update.result()
    with pytest.raises(errors.NotSubmittedError, match="no tokens") as caught:
        step.result()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    training.optim_step(STEP).result()
    # The first pass had number 1; the numbers of what was never sent were never taken.
    assert [request.json["seq_id"] for request in server.sent("optim_step")] == [2]


def test_a_first_pass_that_fails_on_the_server_stops_those_behind_it_too(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    server.script(
        "result of forward_backward-1", Answer(body={"error": "out of memory", "category": "server"})
    )
    update = training.forward_backward_custom(DATA, squared)
    step = training.optim_step(STEP)
    with pytest.raises(errors.RequestFailedError):
        update.result()
    with pytest.raises(errors.NotSubmittedError, match="out of memory"):
        step.result()


def broken(data: list[Datum], logprobs: list[torch.Tensor]) -> Any:
    raise ZeroDivisionError("no tokens")


def heard_by_calling(future: tinkerlite.APIFuture[Any]) -> None:
    with pytest.raises(errors.NotSubmittedError):
        future.result()


def heard_by_awaiting(future: tinkerlite.APIFuture[Any]) -> None:
    with pytest.raises(errors.NotSubmittedError):
        asyncio.run(future.result_async(timeout=10))


def heard_from_the_standard_future(future: tinkerlite.APIFuture[Any]) -> None:
    assert isinstance(future.future().exception(), errors.NotSubmittedError)


@pytest.mark.parametrize("hear", [heard_by_calling, heard_by_awaiting, heard_from_the_standard_future])
def test_what_is_called_before_its_failure_was_heard_of_is_not_sent_either(
    server: ScriptedServer, training: tinkerlite.TrainingClient, hear: Callable[[Any], None]
):
    failed = training.forward_backward_custom(DATA, broken)
    failed.future()  # to hold it is not to hear of it
    assert eventually(failed.done)
    rest_of_the_batch = [training.forward_backward_custom(DATA, squared), training.optim_step(STEP)]
    assert eventually(lambda: all(future.done() for future in rest_of_the_batch))
    for future in rest_of_the_batch:
        hear(future)
    training.optim_step(STEP).result()
    assert len(server.sent("forward_backward")) == len(server.sent("optim_step")) == 1
    with pytest.raises(ZeroDivisionError):
        failed.result()


def test_who_is_not_sent_hears_whether_gradients_wait_on_the_server(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    def refused() -> str:
        failed = training.forward_backward_custom(DATA, broken)
        step = training.optim_step(STEP)
        with pytest.raises(ZeroDivisionError):
            failed.result()
        with pytest.raises(errors.NotSubmittedError) as caught:
            step.result()
        return str(caught.value)

    waiting = "gradients sent before that, since the last step, count"
    assert waiting not in refused()
    training.forward_backward_custom(DATA, squared).result()
    assert waiting in refused()
    training.optim_step(STEP).result()
    assert waiting not in refused()


def test_a_loss_that_ends_the_program_ends_it_where_it_is_waited_for(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    """And not the loop, on which everything else is waited for."""

    def leaving(data: list[Datum], logprobs: list[torch.Tensor]) -> Any:
        raise SystemExit(3)

    update = training.forward_backward_custom(DATA, leaving)
    step = training.optim_step(STEP)
    with pytest.raises(SystemExit):
        update.result(timeout=30)
    with pytest.raises(errors.NotSubmittedError):
        step.result(timeout=30)
    training.optim_step(STEP).result(timeout=30)


def test_a_second_pass_too_large_to_be_read_stops_those_behind_it(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    def too_large(data: list[Datum], logprobs: list[torch.Tensor]) -> Any:
        server.script("forward_backward", Answer(413, {"detail": "more than 64 MiB"}))
        return squared(data, logprobs)

    update = training.forward_backward_custom(DATA, too_large)
    step = training.optim_step(STEP)
    with pytest.raises(errors.APIStatusError, match="64 MiB"):
        update.result()
    with pytest.raises(errors.NotSubmittedError, match="64 MiB"):
        step.result()
    assert server.sent("optim_step") == []


def test_both_passes_are_of_what_the_arrays_held_when_the_call_was_made(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    targets = np.array([6, 7])
    data = [Datum(ModelInput.from_ints([5, 6]), {"target_tokens": targets, "bonus": [1.0, 3.0]})]

    def reused(data: list[Datum], logprobs: list[torch.Tensor]) -> Any:
        targets[:] = 0
        return squared(data, logprobs)

    training.forward_backward_custom(data, reused).result()
    passes = [request.batch.data[0].loss_fn_inputs for request in server.sent("forward_backward")]
    assert [each["target_tokens"].data for each in passes] == [[6, 7], [6, 7]]


def test_a_datum_that_the_loss_ignores_gets_no_gradient(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    training.forward_backward_custom(DATA * 2, squared).result()
    second = server.sent("forward_backward")[1].batch
    assert second.data[1].loss_fn_inputs["weights"].data == [0.0, 0.0]


@pytest.mark.parametrize(
    ("returns", "complaint"),
    [
        (lambda lp: lp.sum(), "returns two things"),
        (lambda lp: (lp.detach().sum(), {}), "one number"),
        (lambda lp: (lp, {}), "one number"),
        (lambda lp: (1.0, {}), "one number"),
        (lambda lp: ((lp + 1).log().sum(), {}), r"data\[0\].*not finite"),
    ],
)
def test_what_it_may_return_is_checked(training: tinkerlite.TrainingClient, returns: Any, complaint: str):
    with pytest.raises(errors.InvalidRequest, match=complaint):
        training.forward_backward_custom(DATA, lambda data, logprobs: returns(logprobs[0])).result()


def test_a_datum_without_targets_is_refused_before_anything_is_sent(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    with pytest.raises(errors.InvalidDatum, match=r"data\[0\].*target_tokens"):
        training.forward_backward_custom([Datum(ModelInput.from_ints([1]))], squared)
    assert server.sent("forward_backward") == []


def squared_in_numpy(data: list[Datum], logprobs: list[Any]) -> Any:
    """The same loss as `squared`, with its own gradient."""
    bonus = data[0].loss_fn_inputs["bonus"].to_numpy()
    return (bonus * logprobs[0] ** 2).sum(), [2 * bonus * logprobs[0]], {"bonus:mean": 2.0}


def test_a_loss_in_numpy_sends_what_the_same_loss_in_torch_sends(
    server: ScriptedServer, training: tinkerlite.TrainingClient
):
    in_torch = training.forward_backward_custom(DATA, squared, loss_type_input="logprobs").result()
    in_numpy = training.forward_backward_custom(DATA, tinkerlite.NumpyLoss(squared_in_numpy)).result()
    assert in_numpy.metrics == in_torch.metrics
    _, one, _, other = (request.batch.data for request in server.sent("forward_backward"))
    assert one == other


@pytest.mark.parametrize(
    ("returned", "complaint"),
    [
        (0.0, "three things"),
        ((0.0, {}), "three things"),
        ((0.0, [], {}), "one gradient a datum: 1, not 0"),
        ((0.0, [[1.0]], {}), "shape"),
        ((0.0, [[float("nan"), 0.0]], {}), "not finite"),
    ],
)
def test_a_loss_in_numpy_that_returns_something_else_is_told_so(
    training: tinkerlite.TrainingClient, returned: Any, complaint: str
):
    with pytest.raises(errors.InvalidRequest, match=complaint):
        training.forward_backward_custom(DATA, tinkerlite.NumpyLoss(lambda *_: returned)).result()


def test_there_is_nothing_else_that_a_loss_is_a_function_of(training: tinkerlite.TrainingClient):
    with pytest.raises(errors.InvalidRequest, match="logprobs"):
        training.forward_backward_custom(DATA, squared, loss_type_input="logits")  # type: ignore[arg-type]
