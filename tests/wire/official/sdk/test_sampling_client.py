"""SamplingClient: samples, scores, and copies of it in other processes."""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import pickle

import pytest
import torch
from lessons import PROMPT, SEQUENCE
from methods import exercises, older_spelling
from tinker import SamplingClient, ServiceClient, types

FIVE = types.SamplingParams(max_tokens=5, seed=1, stop=[])


def tokens(response: types.SampleResponse) -> list[list[int]]:
    return [sequence.tokens for sequence in response.sequences]


@exercises(SamplingClient.sample, SamplingClient.sample_async)
def test_samples_differ_among_themselves_and_not_between_equal_seeds(sampler: SamplingClient):
    async def awaited() -> types.SampleResponse:
        return await sampler.sample(PROMPT, 3, FIVE)

    responses = [sampler.sample(PROMPT, num_samples=3, sampling_params=FIVE).result(), asyncio.run(awaited())]
    with older_spelling():
        responses.append(asyncio.run(sampler.sample_async(PROMPT, 3, FIVE)))
    assert tokens(responses[0]) == tokens(responses[1]) == tokens(responses[2])
    assert len({tuple(each) for each in tokens(responses[0])}) == 3
    ids = [sequence.sequence_id for response in responses for sequence in response.sequences]
    assert len(set(ids)) == 9
    for sequence in responses[0].sequences:
        assert len(sequence.tokens) == len(sequence.logprobs) == 5
        assert all(math.isfinite(lp) and lp <= 0 for lp in sequence.logprobs)
        assert sequence.stop_reason == "length"


@exercises(SamplingClient.compute_logprobs, SamplingClient.compute_logprobs_async)
def test_sampled_logprobs_are_those_of_scoring_the_completion(sampler: SamplingClient):
    [sequence] = sampler.sample(PROMPT, 1, FIVE).result().sequences
    whole = types.ModelInput.from_ints(SEQUENCE + sequence.tokens)

    async def awaited() -> list[float | None]:
        return await sampler.compute_logprobs(whole)

    scores = [sampler.compute_logprobs(whole).result(), asyncio.run(awaited())]
    with older_spelling():
        scores.append(asyncio.run(sampler.compute_logprobs_async(whole)))
    for score in scores:
        assert score[0] is None
        assert len(score) == len(SEQUENCE) + 5
        assert score[len(SEQUENCE) :] == pytest.approx(sequence.logprobs, abs=1e-4)


def test_temperature_changes_the_draw_and_not_the_logprobs(sampler: SamplingClient):
    params = types.SamplingParams(max_tokens=5, seed=1, temperature=3.0, stop=[])
    [sequence] = sampler.sample(PROMPT, 1, params).result().sequences
    whole = types.ModelInput.from_ints(SEQUENCE + sequence.tokens)
    scored = sampler.compute_logprobs(whole).result()[len(SEQUENCE) :]
    assert sequence.logprobs == pytest.approx(scored, abs=1e-4)


def test_greedy_sampling_takes_the_likeliest_and_so_does_top_k_of_one(sampler: SamplingClient):
    greedy = types.SamplingParams(max_tokens=4, temperature=0, stop=[])
    narrow = types.SamplingParams(max_tokens=4, top_k=1, stop=[])
    nucleus = types.SamplingParams(max_tokens=4, top_p=1e-6, stop=[])
    response = sampler.sample(PROMPT, 2, greedy, topk_sample_logprobs=3).result()
    assert tokens(response)[0] == tokens(response)[1]
    assert tokens(sampler.sample(PROMPT, 1, narrow).result()) == [tokens(response)[0]]
    assert tokens(sampler.sample(PROMPT, 1, nucleus).result()) == [tokens(response)[0]]
    for sequence in response.sequences:
        assert sequence.topk_logprobs is not None
        for token, logprob, row in zip(
            sequence.tokens, sequence.logprobs, sequence.topk_logprobs, strict=True
        ):
            assert len(row) == 3
            assert row[0] == (token, pytest.approx(logprob, abs=1e-5))


def test_stops_end_a_completion_and_stay_in_it(sampler: SamplingClient):
    free = tokens(sampler.sample(PROMPT, 1, FIVE).result())[0]
    wanted = free[2]
    stopped = types.SamplingParams(max_tokens=5, seed=1, stop=[wanted])
    [sequence] = sampler.sample(PROMPT, 1, stopped).result().sequences
    assert sequence.tokens == free[: free.index(wanted) + 1]
    assert sequence.stop_reason == "stop"
    text = sampler.get_tokenizer().decode([wanted])
    by_text = types.SamplingParams(max_tokens=5, seed=1, stop=text)
    [sequence] = sampler.sample(PROMPT, 1, by_text).result().sequences
    assert sequence.stop_reason == "stop"
    assert text in sampler.get_tokenizer().decode(sequence.tokens)


def test_without_max_tokens_a_completion_may_fill_the_context(sampler: SamplingClient):
    [sequence] = sampler.sample(PROMPT, 1, types.SamplingParams(seed=1, stop=[])).result().sequences
    assert len(sequence.tokens) > 100
    assert sequence.stop_reason == "length"


def test_prompt_logprobs_and_their_alternatives_come_with_a_sample(sampler: SamplingClient):
    params = types.SamplingParams(max_tokens=1)
    response = sampler.sample(
        PROMPT, 1, params, include_prompt_logprobs=True, topk_prompt_logprobs=30
    ).result()
    assert response.prompt_logprobs == sampler.compute_logprobs(PROMPT).result()
    assert response.topk_prompt_logprobs[0] is None
    for token, logprob, row in zip(
        SEQUENCE[1:], response.prompt_logprobs[1:], response.topk_prompt_logprobs[1:], strict=True
    ):
        assert len(row) == 30
        assert [lp for _, lp in row] == sorted((lp for _, lp in row), reverse=True)
        assert dict(row).get(token, logprob) == pytest.approx(logprob, abs=1e-5)


def test_only_the_last_prompt_logprobs_on_request(sampler: SamplingClient):
    whole = sampler.compute_logprobs(PROMPT).result()
    last = sampler.compute_logprobs(PROMPT, prompt_logprobs_last_n=2).result()
    assert last[:3] == [None, None, None]
    assert last[3:] == pytest.approx(whole[3:], abs=1e-5)


def test_named_tokens_are_scored_at_every_position_dense_or_in_compressed_rows(sampler: SamplingClient):
    """Row i scores tokens at the prompt's position i + 1; -1 asks nothing."""
    dense = types.TensorData([6, 9, 7, -1, 8, 3, 9, 4], "int64", [4, 2])
    sparse = types.TensorData([6, 8], "int64", [4, 64], [0, 1, 1, 2, 2], [5, 7])
    params = types.SamplingParams(max_tokens=1)
    whole = sampler.compute_logprobs(PROMPT).result()[1:]
    found = (
        sampler.sample(PROMPT, 1, params, target_prompt_logprobs=dense)
        .result()
        .target_prompt_logprobs.to_torch()
    )
    assert found.shape == (4, 2)
    assert found[:, 0].tolist() == pytest.approx(whole, abs=1e-5)
    assert found[1, 1] == 0
    assert (found[[0, 2, 3], 1] < 0).all()
    found = sampler.sample(PROMPT, 1, params, target_prompt_logprobs=sparse).result().target_prompt_logprobs
    assert found.sparse_crow_indices == sparse.sparse_crow_indices
    assert found.data == pytest.approx([whole[0], whole[2]], abs=1e-5)


def test_alternatives_are_drawn_at_every_position(sampler: SamplingClient):
    params = types.SamplingParams(max_tokens=1, seed=1)
    drawn = sampler.sample(PROMPT, 1, params, prompt_alt_tokens_k=4).result().prompt_alt_tokens
    tokens_, logprobs = drawn.tokens.to_torch(), drawn.logprobs.to_torch()
    assert tokens_.shape == logprobs.shape == (4, 4)
    scored = sampler.sample(PROMPT, 1, params, target_prompt_logprobs=drawn.tokens).result()
    assert torch.allclose(scored.target_prompt_logprobs.to_torch(), logprobs, atol=1e-5)


def test_chunks_of_a_prompt_are_read_as_one(sampler: SamplingClient):
    chunked = types.ModelInput.from_ints(SEQUENCE[:2]).append(types.EncodedTextChunk(tokens=SEQUENCE[2:]))
    assert sampler.compute_logprobs(chunked).result() == sampler.compute_logprobs(PROMPT).result()


@exercises(SamplingClient.get_base_model, SamplingClient.get_base_model_async)
@exercises(SamplingClient.get_tokenizer, SamplingClient.get_telemetry)
def test_a_sampler_says_what_it_samples_from(sampler: SamplingClient, base_model: str):
    assert sampler.get_base_model() == base_model
    with older_spelling():
        assert asyncio.run(sampler.get_base_model_async()) == base_model
    tokenizer = sampler.get_tokenizer()
    assert tokenizer.decode(tokenizer.encode("Paris")) == "Paris"
    sampler.get_telemetry()


@exercises(SamplingClient.create, SamplingClient.on_queue_state_change)
def test_a_sampler_is_made_from_anothers_connection(sampler: SamplingClient, base_model: str):
    twin = SamplingClient.create(sampler.holder, base_model=base_model).result()
    assert tokens(twin.sample(PROMPT, 1, FIVE).result()) == tokens(sampler.sample(PROMPT, 1, FIVE).result())
    assert callable(twin.on_queue_state_change), "the library calls it: .on_queue_state_change(...)"


def sample_elsewhere(pickled: bytes) -> list[list[int]]:
    """Runs in another process."""
    client: SamplingClient = pickle.loads(pickled)
    return tokens(client.sample(PROMPT, 3, FIVE).result())


def test_pickled_samplers_in_other_processes_sample_alike(sampler: SamplingClient):
    expected = tokens(sampler.sample(PROMPT, 3, FIVE).result())
    pickled = pickle.dumps(sampler)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(sample_elsewhere, [pickled] * 2) == [expected] * 2


@exercises(SamplingClient.get_sampler_handle, SamplingClient.from_sampler_handle)
def test_a_sampler_is_handed_over_as_text(sampler: SamplingClient):
    handle = sampler.get_sampler_handle()
    twin = SamplingClient.from_sampler_handle(handle)
    assert twin.get_base_model() == sampler.get_base_model()
    assert tokens(twin.sample(PROMPT, 3, FIVE).result()) == tokens(sampler.sample(PROMPT, 3, FIVE).result())


def test_two_hundred_samples_at_once_come_back_each_as_alone(sampler: SamplingClient):
    def params(seed: int) -> types.SamplingParams:
        return types.SamplingParams(max_tokens=4, seed=seed, stop=[])

    futures = [sampler.sample(PROMPT, 1, params(seed)) for seed in range(200)]
    crowd = [future.result().sequences[0] for future in futures]
    for seed in range(0, 200, 40):
        [alone] = sampler.sample(PROMPT, 1, params(seed)).result().sequences
        assert crowd[seed].tokens == alone.tokens
        assert crowd[seed].logprobs == pytest.approx(alone.logprobs, abs=1e-5)


def test_a_sampler_of_one_session_is_read_by_a_client_of_another(
    url: str, service: ServiceClient, sampler: SamplingClient
):
    with ServiceClient(base_url=url) as another:
        twin = another.create_sampling_client(base_model=sampler.get_base_model()).result()
        assert tokens(twin.sample(PROMPT, 1, FIVE).result()) == tokens(
            sampler.sample(PROMPT, 1, FIVE).result()
        )
