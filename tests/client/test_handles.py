"""Samplers in other processes: pickled, or handed over as text."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import subprocess
import sys

import pytest

import tinkerlite
from tests.client.scripted_server import ScriptedServer
from tinkerlite import errors
from tinkerlite.types import ModelInput, SamplingParams

PROMPT = ModelInput.from_ints([1, 2, 3])


def draw(sampler: tinkerlite.SamplingClient) -> tuple[list[int], bool]:
    """Runs in another process: what was sampled, and whether torch was imported for it."""
    tokens = sampler.sample(PROMPT, 1, SamplingParams(max_tokens=2)).result().sequences[0].tokens
    sampler.compute_logprobs  # noqa: B018 - a copy has all methods
    return tokens, "torch" in sys.modules


def test_a_sampler_works_in_a_spawned_process_without_torch(
    server: ScriptedServer, sampler: tinkerlite.SamplingClient
):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        tokens, has_torch = pool.apply(draw, (sampler,))
    assert tokens == [1, 2]
    assert not has_torch
    [sample] = server.sent("asample")
    assert sample.json["sampling_session_id"] == sampler.sampling_session_id


def test_every_copy_numbers_its_requests_in_a_range_of_its_own(
    server: ScriptedServer, sampler: tinkerlite.SamplingClient
):
    copies = [pickle.loads(pickle.dumps(sampler)) for _ in range(3)]
    for client in (sampler, *copies, *copies):
        client.sample(PROMPT, 1, SamplingParams(max_tokens=2)).result()
    numbers = [request.json["seq_id"] for request in server.sent("asample")]
    assert numbers[0] == 0
    ranges = [number // 10**9 for number in numbers[1:4]]
    assert len(set(ranges)) == 3
    assert all(1 <= each <= 10**9 for each in ranges)
    assert numbers[4:] == [number + 1 for number in numbers[1:4]]


def test_copies_ask_the_server_nothing_before_they_sample_and_share_a_connection(
    server: ScriptedServer, sampler: tinkerlite.SamplingClient
):
    before = len(server.received)
    one, other = (pickle.loads(pickle.dumps(sampler)) for _ in range(2))
    assert len(server.received) == before
    assert one.get_base_model() == other.get_base_model() == "tiny"
    assert one._connection is other._connection
    assert one._connection is not sampler._connection


def test_a_handle_has_no_key_and_finds_its_own(server: ScriptedServer, service: tinkerlite.ServiceClient):
    import base64

    with tinkerlite.ServiceClient(base_url=server.url, api_key="tml-secret") as keyed:
        handle = keyed.create_sampling_client(base_model="tiny").get_sampler_handle()
        assert "tml-secret" not in json.dumps(json.loads(base64.urlsafe_b64decode(handle)))
        sampler = tinkerlite.SamplingClient.from_sampler_handle(handle, api_key="tml-other")
        sampler.sample(PROMPT, 1, SamplingParams(max_tokens=2)).result()
    assert server.sent("asample")[0].headers["x-api-key"] == "tml-other"


@pytest.mark.parametrize("handle", ["", "what?", "e30=", "W10="])
def test_what_is_no_handle_is_said_to_be_none(handle: str):
    with pytest.raises(errors.InvalidRequest, match="get_sampler_handle"):
        tinkerlite.SamplingClient.from_sampler_handle(handle)


def test_a_sampler_of_a_server_in_this_process_stays_here(local_service: tinkerlite.ServiceClient):
    model = local_service.get_server_capabilities().supported_models[0].model_name
    sampler = local_service.create_sampling_client(base_model=model)
    with pytest.raises(errors.CapabilityError, match="tinkerlite serve"):
        pickle.dumps(sampler)


FORK = """
import os, sys, tinkerlite
service = tinkerlite.ServiceClient(base_url=sys.argv[1])
handle = service.create_sampling_client(base_model="tiny").get_sampler_handle()
mine = tinkerlite.SamplingClient.from_sampler_handle(handle)
child = os.fork()
if child == 0:
    prompt, params = tinkerlite.types.ModelInput.from_ints([1]), tinkerlite.types.SamplingParams(max_tokens=2)
    copy = tinkerlite.SamplingClient.from_sampler_handle(handle)
    print(copy.sample(prompt, 1, params).result().sequences[0].tokens, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_handle_read_after_a_fork_has_a_connection_of_its_own(server: ScriptedServer):
    ended = subprocess.run(
        [sys.executable, "-c", FORK, server.url], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == "[1, 2]\n"
