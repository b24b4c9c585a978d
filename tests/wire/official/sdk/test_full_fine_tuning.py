"""A run of all weights. The SDK has no method that makes one; from its checkpoints on it has everything."""

from __future__ import annotations

import json
import math
import os
import urllib.request
from typing import Any

import pytest
from lessons import PROMPT, STEP, lesson
from tinker import RestClient, ServiceClient, TrainingClient


def ask(url: str, path: str, /, **body: Any) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{url}/api/v1/{path}",
        json.dumps(body).encode(),
        {"X-API-Key": os.environ["TINKER_API_KEY"], "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def untrained(url: str, base_model: str) -> str:
    """The checkpoint of a run whose `lora_config` is null."""
    session = ask(url, "create_session", tags=[], sdk_version="0")["session_id"]
    receipt = ask(
        url, "create_model", session_id=session, model_seq_id=0, base_model=base_model, lora_config=None
    )
    model = ask(url, "retrieve_future", **receipt)["model_id"]
    receipt = ask(url, "save_weights", model_id=model, seq_id=1, path="untrained")
    return ask(url, "retrieve_future", request_id=receipt["request_id"])["path"]


@pytest.fixture
def full(service: ServiceClient, untrained: str) -> TrainingClient:
    return service.create_training_client_from_state_with_optimizer(untrained).result()


def test_it_trains_saves_and_samples_as_any_run(
    service: ServiceClient, rest: RestClient, full: TrainingClient, base_model: str
):
    info = full.get_info()
    assert (info.is_lora, info.lora_rank, info.model_name) == (False, None, base_model)
    losses = []
    for _ in range(4):
        losses.append(full.forward_backward([lesson()], "cross_entropy").result().metrics["loss:sum"])
        full.optim_step(STEP).result()
    assert losses[-1] < losses[0]
    path = full.save_weights_for_sampler("trained").result().path
    named = service.create_sampling_client(model_path=path).result().compute_logprobs(PROMPT).result()
    unnamed = full.save_weights_and_get_sampling_client().result().compute_logprobs(PROMPT).result()
    assert all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(named[1:], unnamed[1:], strict=True))
    assert -sum(named[1:]) < losses[0]
    run = rest.get_training_run(full.model_id).result()
    assert (run.is_lora, run.lora_rank) == (False, None)
    saved = rest.get_weights_info_by_tinker_path(path).result()
    assert (saved.is_lora, saved.lora_rank, saved.base_model) == (False, None, base_model)
