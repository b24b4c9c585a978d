"""A loop in the words of SDK releases of the first half of 2026, whose clients come without a future."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import tinker
from lessons import PROMPT, SEQUENCE, STEP, lesson, rated
from tinker import SamplingClient, ServiceClient, TrainingClient, types


@pytest.fixture(scope="session")
def service(url: str) -> Iterator[ServiceClient]:
    client = ServiceClient(base_url=url)
    yield client
    client.holder.close()


@pytest.fixture(scope="session")
def sampler(service: ServiceClient, base_model: str) -> SamplingClient:
    return service.create_sampling_client(base_model=base_model)


@pytest.fixture
def trainer(service: ServiceClient, base_model: str) -> TrainingClient:
    return service.create_lora_training_client(base_model, rank=4, seed=1)


def logprobs(trainer: TrainingClient) -> list[float]:
    output = trainer.forward([lesson()], "cross_entropy").result()
    return output.loss_fn_outputs[0]["logprobs"].tolist()


def test_the_release_under_test_is_the_one_of_this_folder():
    assert Path(tinker.__file__).parents[1].name == version("tinker") < "0.25"


def test_samples_differ_among_themselves_and_not_between_equal_seeds(sampler: SamplingClient):
    params = types.SamplingParams(max_tokens=5, seed=1, stop=[])
    first, second = (sampler.sample(PROMPT, 3, params).result().sequences for _ in range(2))
    assert [each.tokens for each in first] == [each.tokens for each in second]
    assert len({tuple(each.tokens) for each in first}) == 3
    for sequence in first:
        assert len(sequence.tokens) == len(sequence.logprobs) == 5
        assert all(math.isfinite(lp) and lp <= 0 for lp in sequence.logprobs)


def test_scores_leave_out_the_first_token_and_come_with_alternatives(sampler: SamplingClient):
    scores = sampler.compute_logprobs(PROMPT).result()
    assert scores[0] is None
    response = sampler.sample(
        PROMPT,
        1,
        types.SamplingParams(max_tokens=1),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=3,
    ).result()
    assert response.prompt_logprobs == scores
    assert response.topk_prompt_logprobs[0] is None
    assert [len(row) for row in response.topk_prompt_logprobs[1:]] == [3] * 4


def test_steps_lower_the_loss_and_the_sampler_gets_the_weights(trainer: TrainingClient):
    losses = []
    for _ in range(3):
        update = trainer.forward_backward([lesson()], "cross_entropy")
        step = trainer.optim_step(STEP)
        losses.append(update.result().metrics["loss:sum"])
        step.result()
    assert losses[0] > losses[1] > losses[2]
    sampler = trainer.save_weights_and_get_sampling_client()
    scores = sampler.compute_logprobs(PROMPT).result()[1:]
    assert scores == pytest.approx(logprobs(trainer), abs=1e-4)


def test_policy_losses_and_losses_of_ones_own(trainer: TrainingClient):
    data = [rated([0.0, 1.0, -1.0, 0.5], [0.0, -1.0, -1.0, -1.0])]
    for loss in ("importance_sampling", "ppo"):
        output = trainer.forward_backward(data, loss).result()
        assert math.isfinite(output.metrics["loss:sum"])
    trainer.optim_step(STEP).result()

    def squares(data, logprobs):
        return sum((each**2).sum() for each in logprobs), {}

    losses = []
    for _ in range(3):
        losses.append(trainer.forward_backward_custom([lesson()], squares).result().metrics["loss:sum"])
        trainer.optim_step(STEP).result()
    assert losses[0] > losses[2]


def test_a_saved_run_goes_on_with_and_without_its_optimizer(service: ServiceClient, trainer: TrainingClient):
    for _ in range(3):
        trainer.forward_backward([lesson()], "cross_entropy")
        trainer.optim_step(STEP)
    path = trainer.save_state("third").result().path
    saved = logprobs(trainer)

    def another_step(run: TrainingClient) -> list[float]:
        run.forward_backward([lesson()], "cross_entropy").result()
        run.optim_step(STEP).result()
        return logprobs(run)

    expected = another_step(trainer)
    plain = service.create_training_client_from_state(path)
    assert logprobs(plain) == saved
    assert another_step(service.create_training_client_from_state_with_optimizer(path)) == expected
    assert another_step(plain) != expected


def test_what_was_saved_is_sampled_from_and_listed(service: ServiceClient, trainer: TrainingClient):
    path = trainer.save_weights_for_sampler("kept").result().path
    expected = logprobs(trainer)
    sampler = service.create_sampling_client(model_path=path)
    assert sampler.compute_logprobs(PROMPT).result()[1:] == pytest.approx(expected, abs=1e-4)
    rest = service.create_rest_client()
    run_id = trainer.get_info().model_id
    [checkpoint] = rest.list_checkpoints(run_id).result().checkpoints
    assert (checkpoint.checkpoint_id, checkpoint.tinker_path) == ("sampler_weights/kept", path)
    assert run_id in [run.training_run_id for run in rest.list_training_runs().result().training_runs]
    assert [model.model_name for model in service.get_server_capabilities().supported_models]
    rest.delete_checkpoint(run_id, "sampler_weights/kept").result()
    assert rest.list_checkpoints(run_id).result().checkpoints == []


def test_a_mistake_is_an_error_with_a_reason_and_the_run_goes_on(trainer: TrainingClient):
    bad = types.Datum(
        model_input=types.ModelInput.from_ints([5, 10**6]),
        loss_fn_inputs={"target_tokens": [6, 7], "weights": [1.0, 1.0]},
    )
    with pytest.raises(tinker.BadRequestError, match="token id 1000000"):
        trainer.forward_backward([bad], "cross_entropy").result()
    assert len(logprobs(trainer)) == len(SEQUENCE) - 1


def test_several_targets_at_every_position(trainer: TrainingClient):
    inputs = {
        "target_tokens": types.TensorData(data=[6, 1, 7, 2, 8, 3, 9, 4], dtype="int64", shape=[4, 2]),
        "weights": types.TensorData(data=[0.5] * 8, dtype="float32", shape=[4, 2]),
    }
    data = types.Datum(model_input=types.ModelInput.from_ints(SEQUENCE[:-1]), loss_fn_inputs=inputs)
    output = trainer.forward_backward([data], "cross_entropy").result()
    found = output.loss_fn_outputs[0]["logprobs"]
    assert list(found.shape) == [4, 2]
    assert output.metrics["loss:sum"] == pytest.approx(-0.5 * sum(found.data), abs=1e-3)
