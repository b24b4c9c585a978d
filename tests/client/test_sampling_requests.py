"""What a sampler sends, how much of it at once, and what it does when something is missing."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import pytest

import tinkerlite
from tests.client.scripted_server import HASTY, Answer, ScriptedServer, eventually, protobuf, sampled
from tinkerlite import errors
from tinkerlite.types import ModelInput, SamplingParams, TensorData
from tinkerlite.wire import encode_sample_response

PROMPT = ModelInput.from_ints([1, 2, 3])


def test_a_request_says_what_was_asked_and_leaves_out_what_was_not(
    server: ScriptedServer, sampler: tinkerlite.SamplingClient
):
    sampler.sample(PROMPT, 2, SamplingParams(max_tokens=5, stop=[], temperature=0.5)).result()
    [request] = server.sent("asample")
    assert request.json == {
        "type": "sample",
        "sampling_session_id": "session:sample:0",
        "seq_id": 0,
        "num_samples": 2,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
        "sampling_params": {"max_tokens": 5, "stop": [], "temperature": 0.5, "top_k": -1, "top_p": 1.0},
    }


def test_a_single_stop_string_goes_as_a_list_which_every_server_takes(
    server: ScriptedServer, sampler: tinkerlite.SamplingClient
):
    sampler.sample(PROMPT, 1, SamplingParams(stop="END")).result()
    assert server.sent("asample")[0].json["sampling_params"]["stop"] == ["END"]


@pytest.mark.parametrize("is_of", ["tiny", "other"])
def test_a_server_that_takes_no_base_model_beside_a_path_is_given_the_path_if_they_agree(
    server: ScriptedServer, service: tinkerlite.ServiceClient, is_of: str
):
    server.script("create_sampling_session", Answer(400, {"detail": "exactly one of them"}))
    server.script("samplers/session:sample:0", Answer(body={"sampler_id": "s", "base_model": is_of}))
    path = "tinker://run/sampler_weights/a"
    if is_of == "tiny":
        service.create_sampling_client(path, "tiny")
    else:
        with pytest.raises(errors.BadRequestError, match="exactly one"):
            service.create_sampling_client(path, "tiny")
    both, alone = (request.json for request in server.sent("create_sampling_session"))
    assert (both["base_model"], both["model_path"]) == ("tiny", path)
    assert "base_model" not in alone
    assert both["sampling_session_seq_id"] == alone["sampling_session_seq_id"]


def test_token_ids_may_be_numpys(server: ScriptedServer, sampler: tinkerlite.SamplingClient):
    sampler.sample(ModelInput.from_ints(np.array([1, 2])), 1, SamplingParams()).result()
    chunk = tinkerlite.EncodedTextChunk(tokens=[np.int64(7)])
    sampler.sample(ModelInput(chunks=[chunk]), 1, SamplingParams()).result()
    sent = [request.json["prompt"]["chunks"][0]["tokens"] for request in server.sent("asample")]
    assert sent == [[1, 2], [7]]


def test_samples_of_one_sampler_are_told_apart_by_their_numbers(
    server: ScriptedServer, sampler: tinkerlite.SamplingClient
):
    for future in [sampler.sample(PROMPT, 1, SamplingParams()) for _ in range(5)]:
        future.result()
    assert sorted(request.json["seq_id"] for request in server.sent("asample")) == [0, 1, 2, 3, 4]


def test_sequences_bear_the_names_that_the_server_gave_them(
    server: ScriptedServer, sampler: tinkerlite.SamplingClient
):
    server.script("asample", Answer(body={"request_id": "r", "sample_sequence_ids": ["first"]}))
    server.script("result of r", protobuf(encode_sample_response(sampled([1]))))
    [sequence] = sampler.sample(PROMPT, 1, SamplingParams()).result().sequences
    assert sequence.sequence_id == "first"


@pytest.mark.parametrize(
    ("asked", "missing"),
    [
        ({"include_prompt_logprobs": True}, "prompt_logprobs"),
        ({"topk_prompt_logprobs": 3}, "topk_prompt_logprobs"),
        ({"topk_sample_logprobs": 3}, "topk_sample_logprobs"),
        ({"target_prompt_logprobs": TensorData([[1], [2]])}, "target_prompt_logprobs"),
        ({"prompt_alt_tokens_k": 1}, "prompt_alt_tokens_k"),
    ],
)
def test_what_was_asked_for_and_left_out_is_an_error_and_not_none(
    sampler: tinkerlite.SamplingClient, asked: dict[str, Any], missing: str
):
    with pytest.raises(errors.CapabilityError, match=missing):
        sampler.sample(PROMPT, 1, SamplingParams(), **asked).result()


@pytest.mark.parametrize("returned", [[np.nan, -1.0, -2.0], [-1.0, -2.0]])
def test_a_prompt_has_a_logprob_for_each_token_even_where_the_server_leaves_out_the_first(
    server: ScriptedServer, sampler: tinkerlite.SamplingClient, returned: list[float]
):
    scored = dataclasses.replace(sampled([1]), prompt_logprobs_np=np.array(returned, np.float32))
    server.script("result of asample-0", protobuf(encode_sample_response(scored)))
    assert sampler.compute_logprobs(PROMPT).result() == [None, -1.0, -2.0]


def test_prompt_logprobs_of_another_number_than_the_tokens_are_an_error(
    server: ScriptedServer, sampler: tinkerlite.SamplingClient
):
    scored = dataclasses.replace(sampled([1]), prompt_logprobs_np=np.array([-1.0], np.float32))
    server.script("result of asample-0", protobuf(encode_sample_response(scored)))
    with pytest.raises(errors.APIResponseValidationError, match="1 came back for 3 tokens"):
        sampler.compute_logprobs(PROMPT).result()


def test_scoring_on_a_server_without_prompt_logprobs_is_an_error(sampler: tinkerlite.SamplingClient):
    with pytest.raises(errors.CapabilityError, match="prompt_logprobs"):
        sampler.compute_logprobs(PROMPT).result()


def test_a_hundred_requests_wait_side_by_side(server: ScriptedServer, sampler: tinkerlite.SamplingClient):
    release = threading.Event()
    for number in range(100):
        server.script(f"result of asample-{number}", Answer(408, {}, after=release))
    futures = [sampler.sample(PROMPT, 1, SamplingParams()) for _ in range(100)]
    assert eventually(lambda: len(server.sent("retrieve_future")) == 100)
    release.set()
    assert all(future.result().sequences[0].tokens == [1, 2] for future in futures)


@pytest.mark.parametrize(("ours", "theirs"), [(2, 2000), (256, 2)])
def test_no_more_are_in_flight_than_client_and_server_allow(server: ScriptedServer, ours: int, theirs: int):
    server.script("client/config", Answer(body={"sample_max_concurrent_requests": theirs}))
    config = dataclasses.replace(HASTY, max_concurrent_samples=ours)
    release = threading.Event()
    for number in range(2):
        server.script(f"result of asample-{number}", Answer(408, {}, after=release))
    with tinkerlite.ServiceClient(base_url=server.url, config=config) as service:
        sampler = service.create_sampling_client(base_model="tiny")
        futures = [sampler.sample(PROMPT, 1, SamplingParams()) for _ in range(5)]
        assert eventually(lambda: len(server.sent("retrieve_future")) == 2)
        assert len(server.sent("asample")) == 2
        release.set()
        for future in futures:
            future.result()
    assert len(server.sent("asample")) == 5
