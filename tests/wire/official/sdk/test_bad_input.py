"""What a user gets wrong comes back at once, as an error that names the value, and nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tinker
from lessons import PROMPT, SEQUENCE, STEP, datum, lesson, rated
from tinker import RestClient, SamplingClient, ServiceClient, TrainingClient, types

AT_ONCE = 5.0
"""Seconds. Clients repeat for minutes what they take for trouble on the line."""

OTHER_KEY = "tml-other"
"""Let in as well, as someone else."""

ONES = [1.0] * 4
TARGETS = SEQUENCE[1:]
NAN = float("nan")


@contextmanager
def refused(reason: str, error: type[Exception] = tinker.BadRequestError) -> Iterator[None]:
    started = time.monotonic()
    with pytest.raises(error, match=reason):
        yield
    assert time.monotonic() - started < AT_ONCE


@pytest.mark.parametrize(
    ("data", "loss", "reason"),
    [
        (datum(SEQUENCE[:-1], target_tokens=TARGETS[:3], weights=ONES[:3]), "cross_entropy", "shape"),
        (datum(SEQUENCE[:-1], target_tokens=TARGETS, weights=ONES[:2]), "cross_entropy", "weights.*shape"),
        (datum(SEQUENCE[:-1], target_tokens=TARGETS, weights=[1, NAN, 1, 1]), "cross_entropy", "nan at"),
        (datum(SEQUENCE[:-1], weights=ONES), "cross_entropy", "target_tokens"),
        (datum([5, 10**6], target_tokens=[6, 7], weights=ONES[:2]), "cross_entropy", "token id 1000000"),
        (datum([5, 6], target_tokens=[6, 10**6], weights=ONES[:2]), "cross_entropy", "token id 1000000"),
        (datum([5, 6], target_tokens=[6, -1], weights=ONES[:2]), "cross_entropy", "token id -1"),
        (datum([5] * 600, target_tokens=[5] * 600, weights=[1.0] * 600), "cross_entropy", "512"),
        (
            datum(SEQUENCE[:-1], target_tokens=TARGETS, rewards=types.TensorData(ONES, "float32")),
            "cross_entropy",
            "rewards",
        ),
        (lesson(), "importance_sampling", "logprobs"),
        (rated(ONES, [0.0, -1.0, NAN, -1.0]), "ppo", "nan at"),
        (lesson(), "no_such_loss", "no_such_loss.*cross_entropy"),
    ],
)
def test_a_datum_that_makes_no_sense_is_refused(
    trainer: TrainingClient, data: types.Datum, loss: str, reason: str
):
    with refused(reason):
        trainer.forward_backward([data], loss).result()
    with refused("gradients are missing", tinker.RequestFailedError):
        trainer.optim_step(STEP).result()
    trainer.forward_backward([lesson()], "cross_entropy").result()
    assert trainer.optim_step(STEP).result().metrics["grad_norm"] > 0, "the run goes on"


def test_unknown_options_of_a_loss_are_refused_by_name(trainer: TrainingClient):
    with refused("clip_hihg_threshold"):
        trainer.forward_backward([rated(ONES, [-1.0] * 4)], "ppo", {"clip_hihg_threshold": 1.2}).result()


def test_a_loss_of_ones_own_that_fails_is_reported_as_it_failed(trainer: TrainingClient):
    def broken(data: list[types.Datum], logprobs: list[Any]) -> Any:
        raise ZeroDivisionError("in the user's own loss")

    with refused("in the user's own loss", ZeroDivisionError):
        trainer.forward_backward_custom([lesson()], broken).result()


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        (types.AdamParams(learning_rate=-1.0), "learning_rate"),
        (types.AdamParams(learning_rate=NAN), "learning_rate"),
        (types.AdamParams(beta1=1.5), "beta1"),
        (types.DimuonParams(learning_rate=0.1), "dimuon"),
    ],
)
def test_a_step_that_makes_no_sense_is_refused(
    trainer: TrainingClient, params: types.OptimParams, reason: str
):
    trainer.forward_backward([lesson()], "cross_entropy").result()
    with refused(reason):
        trainer.optim_step(params).result()


@pytest.mark.parametrize(
    ("prompt", "params", "options", "reason"),
    [
        ([5] * 600, {}, {}, "600 tokens.*512"),
        ([], {}, {}, "empty"),
        ([10**6], {}, {}, "token id 1000000"),
        (SEQUENCE, {"temperature": -1.0}, {}, "temperature"),
        (SEQUENCE, {"top_p": 1.5}, {}, "top_p"),
        (SEQUENCE, {"max_tokens": 0}, {}, "max_tokens"),
        (SEQUENCE, {"stop": [10**6]}, {}, "1000000"),
        (SEQUENCE, {}, {"num_samples": 0}, "num_samples is 0"),
        (SEQUENCE, {}, {"topk_prompt_logprobs": 10**5}, "topk_prompt_logprobs"),
        (SEQUENCE, {}, {"topk_sample_logprobs": 10**5}, "topk_sample_logprobs"),
        (
            SEQUENCE,
            {},
            {"include_prompt_logprobs": True, "prompt_logprobs_last_n": 9},
            "prompt_logprobs_last_n",
        ),
    ],
)
def test_a_sample_that_makes_no_sense_is_refused(
    sampler: SamplingClient,
    prompt: list[int],
    params: dict[str, Any],
    options: dict[str, Any],
    reason: str,
):
    with refused(reason):
        sampler.sample(
            types.ModelInput.from_ints(prompt),
            sampling_params=types.SamplingParams(**{"max_tokens": 2} | params),
            **{"num_samples": 1} | options,
        ).result()


def test_scoring_too_long_a_prompt_is_refused(sampler: SamplingClient):
    with refused("600 tokens.*512"):
        sampler.compute_logprobs(types.ModelInput.from_ints([5] * 600)).result()


@pytest.mark.parametrize(
    "ask",
    [
        lambda service: service.create_lora_training_client("no/such-model").result(),
        lambda service: service.create_sampling_client(base_model="no/such-model").result(),
    ],
)
def test_an_unknown_model_is_answered_with_those_there_are(
    service: ServiceClient, base_model: str, ask: Callable[[ServiceClient], Any]
):
    with refused(f"no/such-model.*{base_model}", tinker.NotFoundError):
        ask(service)


def test_a_rank_beyond_reason_is_refused(service: ServiceClient, base_model: str):
    with refused("rank"):
        service.create_lora_training_client(base_model, rank=10**6).result()


def test_an_optimizer_that_is_not_offered_is_refused(service: ServiceClient, base_model: str):
    with refused("dimuon"):
        service.create_lora_training_client(base_model, optimizer=types.DimuonOptimizerConfig()).result()


@pytest.mark.parametrize(
    "ask",
    [
        lambda s: s.create_training_client_from_state("tinker://none/weights/x").result(),
        lambda s: s.create_training_client_from_state_with_optimizer("tinker://none/weights/x").result(),
        lambda s: s.create_sampling_client(model_path="tinker://none/sampler_weights/x").result(),
    ],
)
def test_a_checkpoint_that_is_not_there_is_named(service: ServiceClient, ask: Callable[[ServiceClient], Any]):
    with refused("there is no checkpoint 'tinker://none", tinker.NotFoundError):
        ask(service)


def test_a_sampler_checkpoint_is_not_trained_on(service: ServiceClient, trainer: TrainingClient):
    path = trainer.save_weights_for_sampler("sampler").result().path
    with refused("save_weights|training checkpoint|sampler_weights"):
        service.create_training_client_from_state(path).result()


@pytest.mark.parametrize("name", ["", "a/b", "../up", "with space"])
def test_a_checkpoint_name_that_is_no_name_is_refused(trainer: TrainingClient, name: str):
    with refused("name"):
        trainer.save_state(name).result()


@pytest.mark.parametrize("ttl_seconds", [0, 60, 10**10])
def test_a_ttl_out_of_range_is_refused(trainer: TrainingClient, ttl_seconds: int):
    with refused("ttl_seconds"):
        trainer.save_state("short", ttl_seconds=ttl_seconds).result()


@pytest.mark.parametrize(
    "ask",
    [
        lambda rest: rest.get_training_run("none"),
        lambda rest: rest.list_checkpoints("none"),
        lambda rest: rest.get_session("none"),
        lambda rest: rest.get_sampler("none"),
        lambda rest: rest.get_weights_info_by_tinker_path("tinker://none/weights/x"),
        lambda rest: rest.delete_checkpoint("none", "weights/x"),
        lambda rest: rest.set_checkpoint_ttl_from_tinker_path("tinker://none/weights/x", None),
    ],
)
def test_what_is_not_there_is_said_not_to_be(rest: RestClient, ask: Callable[[RestClient], Any]):
    with refused("there is no", tinker.NotFoundError):
        ask(rest).result()


def test_a_key_that_is_no_key_never_leaves_the_client(url: str):
    with refused("tml-", Exception):
        ServiceClient(base_url=url, api_key="sk-wrong").create_sampling_client(base_model="any").result()


@pytest.mark.parametrize(
    "ask",
    [
        lambda service, rest, model: service.create_sampling_client(base_model=model),
        lambda service, rest, model: service.create_lora_training_client(model),
        lambda service, rest, model: rest.list_sessions(),
    ],
)
def test_a_key_that_is_not_let_in_is_said_to_be_wrong(
    url: str, base_model: str, ask: Callable[[ServiceClient, RestClient, str], Any]
):
    with refused("key", tinker.AuthenticationError):
        service = ServiceClient(base_url=url, api_key="tml-wrong")
        rest = RestClient(base_url=url, api_key="tml-wrong")
        ask(service, rest, base_model).result()


def test_what_belongs_to_someone_else_is_not_there(
    url: str, service: ServiceClient, trainer: TrainingClient, sampler: SamplingClient
):
    path = trainer.save_weights_for_sampler("mine").result().path
    others = RestClient(base_url=url, api_key=OTHER_KEY)
    with refused("there is no", tinker.NotFoundError):
        others.get_training_run(trainer.model_id).result()
    with refused("there is no", tinker.NotFoundError):
        others.delete_checkpoint_from_tinker_path(path).result()
    twin = SamplingClient.from_sampler_handle(sampler.get_sampler_handle(), api_key=OTHER_KEY)
    with refused("there is no", tinker.NotFoundError):
        twin.sample(PROMPT, 1, types.SamplingParams(max_tokens=1)).result()
    assert others.list_user_checkpoints().result().checkpoints == []


def test_a_prompt_given_through_a_client_of_a_closed_session_says_so(url: str, base_model: str):
    service = ServiceClient(base_url=url)
    sampler = service.create_sampling_client(base_model=base_model).result()
    service.close("success").result()
    started = time.monotonic()
    with pytest.raises(Exception):  # noqa: B017
        sampler.sample(PROMPT, 1, types.SamplingParams(max_tokens=1)).result(timeout=30)
    assert time.monotonic() - started < AT_ONCE
