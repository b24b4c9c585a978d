"""A server that asks for it is polled once a session, not once a sample: the results are the same."""

from __future__ import annotations

import pickle

import pytest
from lessons import PROMPT
from tinker import SamplingClient, types

GREEDY = types.SamplingParams(max_tokens=4, temperature=0.0, stop=[])


def test_many_samples_at_once_all_come_back(sampler: SamplingClient):
    futures = [
        sampler.sample(PROMPT, 2, types.SamplingParams(max_tokens=4, seed=seed, stop=[]))
        for seed in range(60)
    ]
    responses = [future.result(timeout=120) for future in futures]
    assert all(len(sequence.tokens) == 4 for response in responses for sequence in response.sequences)
    again = sampler.sample(PROMPT, 2, types.SamplingParams(max_tokens=4, seed=59, stop=[])).result(timeout=60)
    assert [each.tokens for each in again.sequences] == [each.tokens for each in responses[59].sequences]


def test_samples_one_after_another_come_back_too(sampler: SamplingClient):
    tokens = [sampler.sample(PROMPT, 1, GREEDY).result(timeout=60).sequences[0].tokens for _ in range(3)]
    assert tokens[0] == tokens[1] == tokens[2]
    assert len(sampler.compute_logprobs(PROMPT).result(timeout=60)) == PROMPT.length


def test_a_clone_of_a_client_polls_for_its_own_samples(sampler: SamplingClient):
    clone = pickle.loads(pickle.dumps(sampler))
    ours, theirs = sampler.sample(PROMPT, 1, GREEDY), clone.sample(PROMPT, 1, GREEDY)
    assert ours.result(timeout=60).sequences[0].tokens == theirs.result(timeout=60).sequences[0].tokens


def test_a_refused_sample_fails_alone(sampler: SamplingClient):
    fine = sampler.sample(PROMPT, 1, GREEDY)
    with pytest.raises(Exception, match="token id 1000000"):
        sampler.sample(types.ModelInput.from_ints([10**6]), 1, GREEDY).result(timeout=60)
    assert fine.result(timeout=60).sequences
