"""TrainingClient: gradients, steps, saves and loads, in every spelling."""

from __future__ import annotations

import asyncio

import pytest
from lessons import PROMPT, PROPORTIONAL, SEQUENCE, STEP, lesson
from methods import exercises, older_spelling
from tinker import RestClient, SamplingClient, ServiceClient, TrainingClient, types


def logprobs(trainer: TrainingClient) -> list[float]:
    """Of the sequence, under the weights of now."""
    output = trainer.forward([lesson()], "cross_entropy").result()
    return output.loss_fn_outputs[0]["logprobs"].tolist()


@exercises(TrainingClient.forward, TrainingClient.forward_async)
def test_forward_scores_the_targets_as_the_sampler_does(trainer: TrainingClient, sampler: SamplingClient):
    async def older() -> types.ForwardBackwardOutput:
        return await (await trainer.forward_async([lesson()], "cross_entropy"))

    async def awaited() -> types.ForwardBackwardOutput:
        return await trainer.forward([lesson()], "cross_entropy")

    outputs = [trainer.forward([lesson()], "cross_entropy").result(), asyncio.run(awaited())]
    with older_spelling():
        outputs.append(asyncio.run(older()))
    expected = sampler.compute_logprobs(PROMPT).result()[1:]
    for output in outputs:
        [one] = output.loss_fn_outputs
        assert one["logprobs"].tolist() == pytest.approx(expected, abs=1e-4)
        assert one["elementwise_loss"].tolist() == pytest.approx([-lp for lp in expected], abs=1e-4)
        assert output.metrics["loss:sum"] == pytest.approx(-sum(expected), abs=1e-3)


def test_forward_leaves_no_gradients(trainer: TrainingClient):
    before = logprobs(trainer)
    trainer.forward([lesson()], "cross_entropy")
    metrics = trainer.optim_step(STEP).result().metrics
    assert metrics["grad_norm"] == 0
    assert logprobs(trainer) == before


@exercises(
    TrainingClient.forward_backward,
    TrainingClient.forward_backward_async,
    TrainingClient.optim_step,
    TrainingClient.optim_step_async,
)
def test_steps_lower_the_loss_whether_awaited_one_by_one_or_sent_ahead(trainer: TrainingClient):
    losses = []

    async def older() -> float:
        update = await trainer.forward_backward_async([lesson()], "cross_entropy")
        step = await trainer.optim_step_async(STEP)
        loss = (await update).metrics["loss:sum"]
        await step
        return loss

    async def awaited() -> float:
        update = trainer.forward_backward([lesson()], "cross_entropy")
        step = trainer.optim_step(STEP)
        loss = (await update).metrics["loss:sum"]
        await step
        return loss

    losses.append(trainer.forward_backward([lesson()], "cross_entropy").result().metrics["loss:sum"])
    trainer.optim_step(STEP).result()
    with older_spelling():
        losses.append(asyncio.run(older()))
    losses.append(asyncio.run(awaited()))
    update = trainer.forward_backward([lesson()], "cross_entropy")
    step = trainer.optim_step(adam_params=STEP)
    losses.append(update.result().metrics["loss:sum"])
    assert step.result().metrics["grad_norm"] > 0
    losses.append(-sum(logprobs(trainer)))
    assert sorted(losses, reverse=True) == losses
    assert losses[0] - losses[-1] > 0.1, losses


def test_requests_sent_ahead_run_in_the_order_they_were_sent(service: ServiceClient, base_model: str):
    """Ten steps without a wait equal ten steps with one."""

    def trained(wait: bool) -> list[float]:
        run = service.create_lora_training_client(base_model, rank=4, seed=1).result()
        sent = []
        for weight in range(1, 11):
            sent.append(run.forward_backward([lesson(weight=weight)], "cross_entropy"))
            sent.append(run.optim_step(STEP))
            if wait:
                sent[-2].result()
                sent[-1].result()
        return logprobs(run)

    assert trained(wait=True) == trained(wait=False)


def test_gradients_of_several_requests_add_up(service: ServiceClient, base_model: str):
    first, second = lesson(), lesson([9, 3, 2, 8])

    def trained(*batches: list[types.Datum]) -> list[float]:
        run = service.create_lora_training_client(base_model, rank=4, seed=1).result()
        for batch in batches:
            run.forward_backward(batch, "cross_entropy")
        norm = run.optim_step(PROPORTIONAL).result().metrics["grad_norm"]
        return [norm, *logprobs(run)]

    together = trained([first, second])
    assert trained([first], [second]) == pytest.approx(together, rel=1e-4)
    assert trained([first]) != pytest.approx(together, rel=1e-4)


def test_a_step_leaves_no_gradients_behind(trainer: TrainingClient):
    trainer.forward_backward([lesson()], "cross_entropy")
    trainer.optim_step(STEP)
    assert trainer.optim_step(STEP).result().metrics["grad_norm"] == 0


def test_a_step_obeys_its_parameters(service: ServiceClient, base_model: str):
    def run_with(params: types.AdamParams) -> tuple[TrainingClient, types.OptimStepResponse]:
        run = service.create_lora_training_client(base_model, rank=4, seed=1).result()
        run.forward_backward([lesson()], "cross_entropy")
        return run, run.optim_step(params).result()

    still, _ = run_with(types.AdamParams(learning_rate=0.0))
    moved, response = run_with(STEP)
    assert response.metrics["learning_rate"] == pytest.approx(1e-2)
    decayed, _ = run_with(types.AdamParams(learning_rate=1e-2, weight_decay=10.0))
    large, _ = run_with(PROPORTIONAL)
    clipped, _ = run_with(types.AdamParams(learning_rate=0.1, eps=1e3, grad_clip_norm=1e-3))
    steps = [logprobs(run) for run in (still, moved, decayed, large, clipped)]
    base = steps[0]
    change = [max(abs(a - b) for a, b in zip(step, base, strict=True)) for step in steps]
    assert change[1] > 1e-3
    assert steps[2] != steps[1]
    assert change[4] < 0.1 * change[3]


@exercises(TrainingClient.save_state, TrainingClient.save_state_async)
def test_saving_sees_the_step_sent_just_before(service: ServiceClient, trainer: TrainingClient):
    trainer.forward_backward([lesson()], "cross_entropy")
    trainer.optim_step(STEP)
    future = trainer.save_state("soon")
    expected = logprobs(trainer)
    assert future.result().path == f"tinker://{trainer.model_id}/weights/soon"
    assert logprobs(service.create_training_client_from_state(future.result().path).result()) == expected

    async def older() -> types.SaveWeightsResponse:
        return await (await trainer.save_state_async("later"))

    with older_spelling():
        assert asyncio.run(older()).path.endswith("/weights/later")


def test_saving_under_a_taken_name_needs_overwrite(
    service: ServiceClient, trainer: TrainingClient, rest: RestClient
):
    trainer.save_state("once", user_metadata={"attempt": "1"}).result()
    trainer.forward_backward([lesson()], "cross_entropy")
    trainer.optim_step(STEP)
    with pytest.raises(Exception, match="once"):
        trainer.save_state("once").result()
    path = trainer.save_state("once", overwrite=True, user_metadata={"attempt": "2"}).result().path
    [saved] = rest.list_checkpoints(trainer.model_id).result().checkpoints
    assert saved.user_metadata == {"attempt": "2"}
    assert logprobs(service.create_training_client_from_state(path).result()) == logprobs(trainer)


@exercises(
    TrainingClient.load_state,
    TrainingClient.load_state_async,
    TrainingClient.load_state_with_optimizer,
    TrainingClient.load_state_with_optimizer_async,
)
def test_a_fresh_run_takes_the_weights_of_a_checkpoint(
    service: ServiceClient, trainer: TrainingClient, base_model: str
):
    trainer.forward_backward([lesson()], "cross_entropy")
    trainer.optim_step(STEP)
    path = trainer.save_state("first").result().path
    expected = logprobs(trainer)

    def fresh() -> TrainingClient:
        return service.create_lora_training_client(base_model, rank=4, seed=9).result()

    async def older(run: TrainingClient, with_optimizer: bool) -> None:
        if with_optimizer:
            await (await run.load_state_with_optimizer_async(path))
        else:
            await (await run.load_state_async(path))

    plain, moments, plain_awaited, moments_awaited = fresh(), fresh(), fresh(), fresh()
    with older_spelling():
        assert plain.load_state(path).result().path == path
    with older_spelling():
        moments.load_state_with_optimizer(path).result()
    with older_spelling():
        asyncio.run(older(plain_awaited, with_optimizer=False))
    with older_spelling():
        asyncio.run(older(moments_awaited, with_optimizer=True))
    for run in (plain, moments, plain_awaited, moments_awaited):
        assert logprobs(run) == expected


@exercises(TrainingClient.save_weights_for_sampler, TrainingClient.save_weights_for_sampler_async)
@exercises(TrainingClient.create_sampling_client, TrainingClient.create_sampling_client_async)
def test_saved_sampler_weights_score_as_the_trainer_did_then(trainer: TrainingClient):
    trainer.forward_backward([lesson()], "cross_entropy")
    trainer.optim_step(STEP)
    path = trainer.save_weights_for_sampler("one").result().path
    assert path == f"tinker://{trainer.model_id}/sampler_weights/one"
    expected = logprobs(trainer)

    async def older() -> str:
        return (await (await trainer.save_weights_for_sampler_async("two"))).path

    with older_spelling():
        paths = [path, asyncio.run(older())]
    trainer.forward_backward([lesson()], "cross_entropy")
    trainer.optim_step(STEP)
    samplers = [trainer.create_sampling_client(each).result() for each in paths]
    with older_spelling():
        samplers.append(asyncio.run(trainer.create_sampling_client_async(path)))
    for sampler in samplers:
        assert sampler.compute_logprobs(PROMPT).result()[1:] == pytest.approx(expected, abs=1e-4)


@exercises(
    TrainingClient.save_weights_and_get_sampling_client,
    TrainingClient.save_weights_and_get_sampling_client_async,
)
def test_a_sampler_of_the_weights_of_now_stays_as_they_were(trainer: TrainingClient):
    async def awaited(kind: types.SamplingClientKind) -> SamplingClient:
        return await trainer.save_weights_and_get_sampling_client(kind=kind)

    trainer.forward_backward([lesson()], "cross_entropy")
    trainer.optim_step(STEP)
    expected = logprobs(trainer)
    samplers = [
        trainer.save_weights_and_get_sampling_client().result(),
        asyncio.run(awaited("snapshot")),
        asyncio.run(awaited("inflight")),
    ]
    with older_spelling():
        samplers.append(asyncio.run(trainer.save_weights_and_get_sampling_client_async()))
    trainer.forward_backward([lesson()], "cross_entropy")
    trainer.optim_step(STEP).result()
    assert logprobs(trainer) != pytest.approx(expected, abs=1e-3)
    for sampler in samplers:
        assert sampler.compute_logprobs(PROMPT).result()[1:] == pytest.approx(expected, abs=1e-4)


@exercises(TrainingClient.get_info, TrainingClient.get_info_async, TrainingClient.get_tokenizer)
@exercises(TrainingClient.get_console_url, TrainingClient.get_telemetry)
def test_a_run_says_what_it_is(trainer: TrainingClient, base_model: str):
    with older_spelling():
        assert asyncio.run(trainer.get_info_async()) == trainer.get_info()
    assert trainer.get_info().model_id == trainer.model_id
    tokenizer = trainer.get_tokenizer()
    assert tokenizer.decode(tokenizer.encode("Every good boy")) == "Every good boy"
    assert trainer.model_id in trainer.get_console_url()
    trainer.get_telemetry()


def test_three_runs_at_once_train_as_each_would_alone(service: ServiceClient, base_model: str):
    lessons = [lesson(SEQUENCE), lesson([9, 3, 2, 8]), lesson([40, 41, 42, 43, 44, 45])]

    def train(run: TrainingClient, data: types.Datum) -> None:
        for _ in range(4):
            run.forward_backward([data], "cross_entropy")
            run.optim_step(STEP)

    def fresh() -> TrainingClient:
        return service.create_lora_training_client(base_model, rank=4, seed=1).result()

    alone = []
    for data in lessons:
        run = fresh()
        train(run, data)
        alone.append(logprobs(run))
    together = [fresh() for _ in lessons]
    for run, data in zip(together, lessons, strict=True):
        train(run, data)  # all are sent before any is awaited
    for run, expected in zip(together, alone, strict=True):
        assert logprobs(run) == pytest.approx(expected, abs=1e-5)
