"""Losses: their values, worked out here from the logprobs that come back, and losses of one's own."""

from __future__ import annotations

import asyncio

import pytest
import torch
from lessons import PROPORTIONAL, SEQUENCE, STEP, datum, lesson, rated
from methods import exercises, older_spelling
from tinker import ServiceClient, TrainingClient, types

ADVANTAGES = [0.0, 1.0, -2.0, 0.5]
"""The first token was given, so it has none."""


def ratio_and_logprobs(
    trainer: TrainingClient, offset: float
) -> tuple[list[float], torch.Tensor, torch.Tensor]:
    """What a sampler `offset` nats away would have recorded, the ratio to it, and the logprobs of now."""
    output = trainer.forward([lesson()], "cross_entropy").result()
    now = output.loss_fn_outputs[0]["logprobs"].to_torch()
    recorded = now - torch.tensor([0.0, offset, offset, offset])
    recorded[0] = 0.0
    return recorded.tolist(), (now - recorded).exp(), now


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("importance_sampling", {}),
        ("ppo", {}),
        ("ppo", {"clip_low_threshold": 0.9, "clip_high_threshold": 1.05}),
        ("cispo", {}),
        ("cispo", {"clip_low_threshold": 0.9, "clip_high_threshold": 1.05}),
        ("dro", {"beta": 0.3}),
    ],
)
def test_a_policy_loss_is_the_documented_sum(trainer: TrainingClient, name: str, config: dict[str, float]):
    recorded, ratio, now = ratio_and_logprobs(trainer, 0.3)
    advantages = torch.tensor(ADVANTAGES)
    low = config.get("clip_low_threshold", {"ppo": 0.8, "cispo": 0.0}.get(name))
    high = config.get("clip_high_threshold", {"ppo": 1.2, "cispo": 4.0}.get(name))
    expected = {
        "importance_sampling": lambda: -(ratio * advantages),
        "ppo": lambda: -torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages),
        "cispo": lambda: -(ratio.clamp(low, high) * now * advantages),
        "dro": lambda: -(now * advantages - 0.5 * config["beta"] * (now - torch.tensor(recorded)) ** 2),
    }[name]()[1:].sum()  # a given position has no advantage, and costs nothing
    output = trainer.forward_backward([rated(ADVANTAGES, recorded)], name, config or None).result()
    assert output.metrics["loss:sum"] == pytest.approx(float(expected), abs=1e-4)
    assert output.loss_fn_outputs[0]["logprobs"].tolist() == pytest.approx(now.tolist(), abs=1e-5)


def test_gspo_weighs_a_sequence_by_its_mean_ratio(trainer: TrainingClient):
    recorded, _, _ = ratio_and_logprobs(trainer, 0.1)
    mask = [0.0, 1.0, 1.0, 1.0]
    output = trainer.forward_backward(
        [rated(ADVANTAGES, recorded, sequence_ratio_mask=mask)], "gspo"
    ).result()
    ratio = float(torch.tensor(0.1).exp())
    expected = -sum(ratio * advantage for advantage in ADVANTAGES)
    assert output.metrics["loss:sum"] == pytest.approx(expected, abs=1e-4)


def test_an_advantage_moves_a_token_its_way(trainer: TrainingClient):
    recorded, _, before = ratio_and_logprobs(trainer, 0.0)
    trainer.forward_backward([rated([0.0, 1.0, 0.0, -1.0], recorded)], "importance_sampling")
    trainer.optim_step(STEP)
    _, _, after = ratio_and_logprobs(trainer, 0.0)
    assert after[1] > before[1]
    assert after[3] < before[3]


def test_several_targets_at_every_position(trainer: TrainingClient):
    """Distillation on a teacher's top tokens: (N, K) targets and weights."""
    targets = torch.tensor([[6, 1], [7, 2], [8, 3], [9, 4]])
    weights = torch.tensor([[0.7, 0.3], [0.5, 0.5], [1.0, 0.0], [0.2, -0.1]])
    data = [datum(SEQUENCE[:-1], target_tokens=targets, weights=weights)]
    output = trainer.forward_backward(data, "cross_entropy").result()
    found = output.loss_fn_outputs[0]["logprobs"].to_torch()
    assert found.shape == (4, 2)
    single = trainer.forward([lesson()], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].tolist()
    assert found[:, 0].tolist() == pytest.approx(single, abs=1e-5)
    assert output.metrics["loss:sum"] == pytest.approx(float(-(weights * found).sum()), abs=1e-4)


def test_sparse_targets_equal_dense_ones(trainer: TrainingClient):
    """The client sends mostly-zero tensors in compressed rows, each tensor as it likes."""
    targets = torch.zeros(4, 64, dtype=torch.int64)
    weights = torch.zeros(4, 64)
    targets[:, 0], weights[:, 0] = torch.tensor(SEQUENCE[1:]), 1.0
    inputs = types.ModelInput.from_ints(SEQUENCE[:-1])
    sparse = types.Datum(model_input=inputs, loss_fn_inputs={"target_tokens": targets, "weights": weights})
    mixed = types.Datum(
        model_input=inputs, loss_fn_inputs={"target_tokens": targets, "weights": weights.numpy()}
    )
    assert sparse.loss_fn_inputs["target_tokens"].sparse_crow_indices is not None
    assert mixed.loss_fn_inputs["weights"].sparse_crow_indices is None
    expected = trainer.forward([lesson()], "cross_entropy").result()
    for data in (sparse, mixed):
        output = trainer.forward([data], "cross_entropy").result()
        assert output.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], abs=1e-4)
        found = output.loss_fn_outputs[0]["logprobs"].to_torch()
        assert found.shape == (4, 64)
        assert found[:, 0].tolist() == pytest.approx(
            expected.loss_fn_outputs[0]["logprobs"].tolist(), abs=1e-5
        )


def squared_error(
    data: list[types.Datum], logprobs: list[torch.Tensor]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Wants every logprob to be 0, the worst ones first: a loss that no server offers."""
    loss = torch.cat([each**2 for each in logprobs]).sum()
    return loss, {"datums": float(len(data))}


@exercises(TrainingClient.forward_backward_custom, TrainingClient.forward_backward_custom_async)
def test_a_loss_of_ones_own_is_differentiated_here_and_applied_there(trainer: TrainingClient):
    data = [lesson(), lesson([9, 3, 2])]
    losses = []

    async def awaited() -> types.ForwardBackwardOutput:
        update = trainer.forward_backward_custom(data, squared_error)
        step = trainer.optim_step(STEP)
        output = await update
        await step
        return output

    async def older() -> types.ForwardBackwardOutput:
        update = await trainer.forward_backward_custom_async(data, squared_error)
        step = trainer.optim_step(STEP)
        output = await update
        await step
        return output

    for _ in range(3):
        update = trainer.forward_backward_custom(data, squared_error)
        step = trainer.optim_step(STEP)
        losses.append(update.result().metrics["loss:sum"])
        step.result()
    losses.append(asyncio.run(awaited()).metrics["loss:sum"])
    with older_spelling():
        output = asyncio.run(older())
    losses.append(output.metrics["loss:sum"])
    assert output.metrics["datums"] == 2.0
    assert sorted(losses, reverse=True) == losses
    assert losses[-1] < 0.9 * losses[0], losses


def test_a_known_loss_written_as_ones_own_trains_alike(service: ServiceClient, base_model: str):
    def cross_entropy(data: list[types.Datum], logprobs: list[torch.Tensor]):
        return -torch.cat(logprobs).sum(), {}

    def trained(custom: bool) -> list[float]:
        run = service.create_lora_training_client(base_model, rank=4, seed=1).result()
        for _ in range(3):
            if custom:
                run.forward_backward_custom([lesson()], cross_entropy)
            else:
                run.forward_backward([lesson()], "cross_entropy")
            run.optim_step(STEP)
        return run.forward([lesson()], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].tolist()

    assert trained(custom=True) == pytest.approx(trained(custom=False), abs=1e-5)


@exercises(ServiceClient.create_custom_loss)
def test_a_traced_loss_trains_like_the_same_loss_of_the_server(service: ServiceClient, base_model: str):
    """Where it runs, here or there, is the server's choice."""

    def weighted(logprobs, weights):
        loss = -(logprobs * weights).sum()
        return loss, {"custom/weighted:sum": loss}

    handle = service.create_custom_loss(weighted, input_ranks={"logprobs": 1, "weights": 1}).result()
    data = [lesson(weight=0.5), lesson([9, 3, 2, 8])]

    def trained(traced: bool) -> list[float]:
        run = service.create_lora_training_client(base_model, rank=4, seed=1).result()
        if traced:
            metrics = run.forward_backward_custom(data, handle).result().metrics
            assert metrics["custom/weighted:sum"] == pytest.approx(metrics["loss:sum"], rel=1e-5)
        else:
            metrics = run.forward_backward(data, "cross_entropy").result().metrics
        run.optim_step(PROPORTIONAL)
        output = run.forward([lesson()], "cross_entropy").result()
        return [metrics["loss:sum"], *output.loss_fn_outputs[0]["logprobs"].tolist()]

    assert trained(traced=True) == pytest.approx(trained(traced=False), rel=1e-5)


def test_a_large_batch_travels_in_chunks_and_comes_back_whole(trainer: TrainingClient):
    """More datums than one request takes; their order and their sum survive."""
    data = [lesson([5, 6 + index % 3]) for index in range(1030)]
    output = trainer.forward_backward(data, "cross_entropy").result()
    logprobs = [each["logprobs"].tolist()[0] for each in output.loss_fn_outputs]
    assert len(logprobs) == 1030
    assert logprobs == pytest.approx((logprobs[:3] * 344)[:1030], abs=1e-5)
    assert len(set(logprobs[:3])) == 3
    assert output.metrics["loss:sum"] == pytest.approx(-sum(logprobs), rel=1e-4)
    assert trainer.optim_step(STEP).result().metrics["grad_norm"] > 0
