"""Questions about a prompt: what cannot be asked, what a server does not offer, and what it answers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import tinkerlite
from tests.client.scripted_server import Answer, ScriptedServer, protobuf, sampled
from tinkerlite import errors
from tinkerlite.types import ImageChunk, ModelInput, SamplingParams, TensorData, TopkLogprobs
from tinkerlite.wire import encode_sample_response

PROMPT = ModelInput.from_ints([1, 2, 3])
TARGETS = TensorData([[4, -1], [5, 6]])


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"topk_prompt_logprobs": -1}, "topk_prompt_logprobs is -1"),
        ({"prompt_alt_tokens_k": -2}, "prompt_alt_tokens_k is -2"),
        ({"target_prompt_logprobs": TensorData([[1.0], [2.0]])}, "is float32; token ids are int64"),
        ({"target_prompt_logprobs": TensorData([4, 5])}, r"has shape \[2\]; it must be \[2, K\]"),
        ({"target_prompt_logprobs": TensorData([[4]])}, r"has shape \[1, 1\]; it must be \[2, K\]"),
        ({"target_prompt_logprobs": TensorData([[4], [-2]])}, "-1 alone means that nothing is asked"),
        ({"target_prompt_logprobs": TensorData([[4], [2**31]])}, "no token ids"),
        ({"target_prompt_logprobs": TensorData([[-1], [-1]])}, "names no token id"),
        ({"prompt_logprobs_last_n": 2}, "set include_prompt_logprobs too"),
        ({"prompt_logprobs_last_n": 0, "include_prompt_logprobs": True}, "is 0; it must be 1 to 2"),
        ({"prompt_logprobs_last_n": 3, "include_prompt_logprobs": True}, "is 3; it must be 1 to 2"),
    ],
)
def test_what_no_server_could_answer_is_refused_at_once(
    server: ScriptedServer, sampler: tinkerlite.SamplingClient, asked: dict[str, Any], complaint: str
):
    with pytest.raises(errors.InvalidRequest, match=complaint):
        sampler.sample(PROMPT, 1, SamplingParams(), **asked)
    assert not server.sent("asample")


def test_scoring_the_last_n_is_checked_too(sampler: tinkerlite.SamplingClient):
    with pytest.raises(errors.InvalidRequest, match="is 3; it must be 1 to 2"):
        sampler.compute_logprobs(PROMPT, prompt_logprobs_last_n=3)


def test_with_an_image_only_the_server_knows_how_many_rows_there_are(sampler: tinkerlite.SamplingClient):
    seen = PROMPT.append(ImageChunk(data=b"", format="png"))
    with pytest.raises(errors.InvalidRequest, match=r"it must be \[P-1, K\]"):
        sampler.sample(seen, 1, SamplingParams(), target_prompt_logprobs=TensorData([4, 5]))
    with pytest.raises(errors.CapabilityError, match="returned no target_prompt_logprobs"):
        sampler.sample(seen, 1, SamplingParams(), target_prompt_logprobs=TensorData([[4]] * 40)).result()


def test_targets_are_sent_in_the_layout_they_are_given_in(
    server: ScriptedServer, sampler: tinkerlite.SamplingClient
):
    for targets in (TARGETS, TARGETS.to_csr(pad_value=-1)):
        with pytest.raises(errors.CapabilityError):
            sampler.sample(PROMPT, 1, SamplingParams(), target_prompt_logprobs=targets).result()
    dense, sparse = [request.json["target_prompt_logprobs"] for request in server.sent("asample")]
    assert dense == {"data": [4, -1, 5, 6], "dtype": "int64", "shape": [2, 2]}
    assert sparse == {
        "data": [4, 5, 6],
        "dtype": "int64",
        "shape": [2, 2],
        "sparse_crow_indices": [0, 1, 3],
        "sparse_col_indices": [0, 0, 1],
    }


# ---- what a server announces ----


def announcing(**fields: Any) -> Answer:
    return Answer(body={"supported_models": [{"model_name": "tiny", **fields}]})


@pytest.mark.parametrize(
    ("announced", "asked", "complaint"),
    [
        (
            {"sample_features": ["prompt_logprobs", "topk_prompt_logprobs"]},
            {"prompt_alt_tokens_k": 2},
            "does not offer prompt_alt_tokens_k for tiny; it offers prompt_logprobs, topk_prompt_logprobs",
        ),
        (
            {"sample_features": []},
            {"target_prompt_logprobs": TARGETS},
            "does not offer target_prompt_logprobs for tiny; it offers completions alone",
        ),
        (
            {"sample_features": ["topk_sample_logprobs"], "max_topk": 20},
            {"topk_sample_logprobs": 21},
            "topk_sample_logprobs is 21, and the server gives at most 20 alternatives a position",
        ),
    ],
)
def test_what_the_server_announces_that_it_lacks_is_not_even_asked(
    server: ScriptedServer,
    sampler: tinkerlite.SamplingClient,
    announced: dict[str, Any],
    asked: dict[str, Any],
    complaint: str,
):
    server.script("get_server_capabilities", announcing(**announced))
    with pytest.raises(errors.CapabilityError, match=complaint):
        sampler.sample(PROMPT, 1, SamplingParams(), **asked).result()
    assert not server.sent("asample")


@pytest.mark.parametrize(
    "answer",
    [
        announcing(),
        Answer(body={"supported_models": []}),
        Answer(404, {"detail": "no such route"}),
        Answer(500, {}),
    ],
)
def test_a_server_that_announces_nothing_is_asked_and_may_surprise(
    server: ScriptedServer, sampler: tinkerlite.SamplingClient, answer: Answer
):
    server.script("get_server_capabilities", answer)
    server.script("result of asample-0", protobuf(encode_sample_response(with_topk())))
    assert sampler.sample(PROMPT, 1, SamplingParams(), topk_prompt_logprobs=1).result().topk_prompt_logprobs


def test_what_is_announced_is_looked_up_once_and_only_when_something_depends_on_it(
    server: ScriptedServer, service: tinkerlite.ServiceClient
):
    sampler = service.create_sampling_client(base_model="tiny")
    sampler.sample(PROMPT, 1, SamplingParams()).result()
    assert not server.sent("get_server_capabilities")
    server.script("get_server_capabilities", announcing(sample_features=[]))
    for asker in (sampler, sampler, service.create_sampling_client(base_model="tiny")):
        with pytest.raises(errors.CapabilityError):
            asker.sample(PROMPT, 1, SamplingParams(), topk_prompt_logprobs=1).result()
    assert len(server.sent("get_server_capabilities")) == 1


# ---- what comes back ----


def with_topk() -> tinkerlite.types.SampleResponse:
    """Everything about the prompt scored, whatever was asked."""
    return dataclasses.replace(
        sampled([1, 2]),
        prompt_logprobs_np=np.array([np.nan, -1.0, -2.0], np.float32),
        topk_prompt_logprobs_np=TopkLogprobs(
            np.array([[0], [7], [8]], np.int32), np.array([[-99999.0], [-0.5], [-0.25]], np.float32)
        ),
    )


def test_a_server_that_does_not_know_the_last_n_and_scores_everything_is_read_as_if_it_did(
    server: ScriptedServer, sampler: tinkerlite.SamplingClient
):
    server.script("result of asample-0", protobuf(encode_sample_response(with_topk())))
    server.script("result of asample-1", protobuf(encode_sample_response(with_topk())))
    response = sampler.sample(
        PROMPT,
        1,
        SamplingParams(),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=1,
        prompt_logprobs_last_n=1,
    ).result()
    assert response.prompt_logprobs == [None, None, -2.0]
    assert response.topk_prompt_logprobs == [None, None, [(8, -0.25)]]
    assert sampler.compute_logprobs(PROMPT, prompt_logprobs_last_n=1).result() == [None, None, -2.0]
