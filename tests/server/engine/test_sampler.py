"""The sampler's numbers against slow twins: transformers' own forward, and no cache."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.server.engine.sampling import (
    EXTRA_ROWS,
    VOCABULARY,
    logprobs_of,
    make_adapter,
    make_sampler,
    make_work,
    model_of,
    outcomes,
    prompt_logprobs_of,
    reference_logits,
    reference_logprobs,
    responses,
    same,
    sampled,
    scoring,
    some_tokens,
)
from tinkerlite.types import SampleResponse
from tinkerlite.types.sampling import EMPTY_SLOT_LOGPROB
from tinkerlite_server.engine.adapter_files import write_adapter
from tinkerlite_server.engine.logprobs import target_logprobs
from tinkerlite_server.engine.sampler import LocalSampler
from tinkerlite_server.engine.streams import PackedStream
from tinkerlite_server.errors import UnknownName

# ---- logprobs ----


def test_sampled_logprobs_equal_transformers_forward(any_folder: Path):
    prompt = some_tokens(9)
    sequence = sampled(make_sampler(any_folder), make_work(any_folder, prompt, max_tokens=30))
    expected = reference_logprobs(any_folder, prompt, sequence.tokens)
    np.testing.assert_allclose(logprobs_of(sequence), expected, atol=2e-5, rtol=0)


def test_prompt_logprobs_equal_transformers_forward(any_folder: Path):
    tokens = some_tokens(40)
    [response] = responses(make_sampler(any_folder), scoring(any_folder, tokens))
    assert math.isnan(prompt_logprobs_of(response)[0])
    expected = reference_logprobs(any_folder, tokens[:1], tokens[1:])
    np.testing.assert_allclose(prompt_logprobs_of(response)[1:], expected, atol=2e-5, rtol=0)


def test_sampled_logprobs_equal_scoring_the_completion(any_folder: Path):
    sampler, prompt = make_sampler(any_folder), some_tokens(20)
    sequence = sampled(sampler, make_work(any_folder, prompt, max_tokens=40))
    [scored] = responses(sampler, scoring(any_folder, [*prompt, *sequence.tokens]))
    np.testing.assert_allclose(
        logprobs_of(sequence), prompt_logprobs_of(scored)[len(prompt) :], atol=1e-5, rtol=0
    )


def test_in_bfloat16_sampling_and_scoring_agree_to_its_precision(folder: Path):
    sampler, prompt = make_sampler(folder, dtype="bfloat16"), some_tokens(20)
    works = [make_work(folder, prompt[: 5 + 3 * i], key=str(i), seed=i, max_tokens=40) for i in range(4)]
    gaps: list[np.ndarray] = []
    for work, response in zip(works, responses(sampler, *works), strict=True):
        [sequence] = response.sequences
        [scored] = responses(sampler, scoring(folder, [*work.prompt, *sequence.tokens]))
        gaps.append(prompt_logprobs_of(scored)[len(work.prompt) :] - logprobs_of(sequence))
    assert np.abs(np.concatenate(gaps)).mean() < 2e-2


def test_decoding_from_the_cache_equals_recomputing_the_sequence_for_every_token(any_folder: Path):
    sampler = make_sampler(any_folder)
    model = model_of(sampler, any_folder)
    adapter = make_adapter(model, seed=1)
    sampler.add_adapter("a", str(any_folder), adapter)
    works = [
        make_work(
            any_folder, some_tokens(3 + 11 * i, seed=i), key=str(i), adapter_id="a", max_tokens=10 + 9 * i
        )
        for i in range(5)
    ]
    for work, response in zip(works, responses(sampler, *works), strict=True):
        tokens = np.concatenate([work.prompt, response.sequences[0].tokens_np])
        for place in range(len(work.prompt), len(tokens)):
            with torch.inference_mode():
                stream = PackedStream([tokens[:place]], [adapter], model.device)
                target = torch.tensor([tokens[place]])
                last = torch.tensor([place - 1])
                expected = target_logprobs(model, model.hidden(stream), stream.adapters, last, target, 256)
            got = logprobs_of(response.sequences[0])[place - len(work.prompt)]
            assert got == pytest.approx(expected.item(), abs=1e-5)


def test_greedy_equals_transformers_generate(any_folder: Path):
    prompt = some_tokens(12)
    greedy = sampled(make_sampler(any_folder), make_work(any_folder, prompt, temperature=0.0, max_tokens=40))
    model = AutoModelForCausalLM.from_pretrained(any_folder, dtype=torch.float32)
    ids = torch.from_numpy(prompt)[None]
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40, eos_token_id=None
    )
    assert greedy.tokens == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    "families", [{}, {"train_unembed": False}, {"train_attn": False, "train_mlp": False}]
)
def test_an_adapter_gives_the_logprobs_of_its_merged_weights(any_folder: Path, families: dict[str, bool]):
    sampler, prompt = make_sampler(any_folder), some_tokens(10)
    adapter = make_adapter(model_of(sampler, any_folder), seed=3, **families)
    sampler.add_adapter("a", str(any_folder), adapter)
    work = make_work(any_folder, prompt, adapter_id="a", max_tokens=20, prompt_logprobs=True)
    [response] = responses(sampler, work)
    [sequence] = response.sequences
    expected = reference_logprobs(any_folder, prompt, sequence.tokens, adapter)
    np.testing.assert_allclose(logprobs_of(sequence), expected, atol=5e-5, rtol=0)
    expected = reference_logprobs(any_folder, prompt[:1], prompt[1:], adapter)
    np.testing.assert_allclose(prompt_logprobs_of(response)[1:], expected, atol=5e-5, rtol=0)
    bare = reference_logprobs(any_folder, prompt, sequence.tokens)
    assert np.abs(bare - logprobs_of(sequence)).max() > 0.01


def test_temperature_changes_what_is_drawn_but_not_what_its_logprob_means(folder: Path):
    sampler, prompt = make_sampler(folder), some_tokens(10)
    cold, hot = (
        sampled(sampler, make_work(folder, prompt, temperature=t, max_tokens=30)) for t in (0.3, 2.0)
    )
    assert cold.tokens != hot.tokens
    assert logprobs_of(cold).mean() > logprobs_of(hot).mean() + 1
    for sequence in (cold, hot):
        expected = reference_logprobs(folder, prompt, sequence.tokens)
        np.testing.assert_allclose(logprobs_of(sequence), expected, atol=2e-5, rtol=0)


def test_ids_beyond_the_tokenizer_count_in_the_distribution(folder: Path):
    [response] = responses(
        make_sampler(folder), scoring(folder, some_tokens(5), topk_prompt_logprobs=VOCABULARY + EXTRA_ROWS)
    )
    assert response.topk_prompt_logprobs_np is not None
    probabilities = np.exp(response.topk_prompt_logprobs_np.logprobs[1:].astype(np.float64))
    assert probabilities.shape == (4, VOCABULARY + EXTRA_ROWS)
    np.testing.assert_allclose(probabilities.sum(-1), 1.0, atol=1e-5)


def test_top_k_logprobs_of_prompt_and_completion_equal_transformers(folder: Path):
    prompt = some_tokens(7)
    work = make_work(
        folder, prompt, max_tokens=5, topk_prompt_logprobs=3, topk_sample_logprobs=4, prompt_logprobs=True
    )
    [response] = responses(make_sampler(folder), work)
    [sequence] = response.sequences
    table = reference_logits(folder, [*prompt, *sequence.tokens]).log_softmax(-1)
    ranked = table.topk(4)
    assert response.topk_prompt_logprobs_np is not None
    assert sequence.topk_logprobs_np is not None
    asked, drawn = response.topk_prompt_logprobs_np, sequence.topk_logprobs_np
    assert asked.token_ids.shape == (7, 3)
    assert drawn.token_ids.shape == (5, 4)
    assert asked.token_ids.dtype == np.int32
    assert drawn.logprobs.dtype == np.float32
    assert asked.token_ids[0].tolist() == [0, 0, 0]
    assert asked.logprobs[0].tolist() == [np.float32(EMPTY_SLOT_LOGPROB)] * 3
    assert response.topk_prompt_logprobs is not None
    assert response.topk_prompt_logprobs[0] is None
    assert asked.token_ids[1:].tolist() == ranked.indices[:6, :3].tolist()
    assert drawn.token_ids.tolist() == ranked.indices[6:11].tolist()
    np.testing.assert_allclose(asked.logprobs[1:], ranked.values[:6, :3], atol=2e-5)
    np.testing.assert_allclose(drawn.logprobs, ranked.values[6:11], atol=2e-5)


def test_requests_that_want_different_numbers_of_likeliest_tokens_each_get_theirs(folder: Path):
    prompts = [some_tokens(5, seed=i) for i in range(3)]
    works = [
        make_work(folder, prompts[i], key=str(i), topk_prompt_logprobs=k, topk_sample_logprobs=2 * k)
        for i, k in enumerate([0, 2, 5])
    ]
    # And a fourth with the prompt of the third, which is read once for both.
    works.append(make_work(folder, prompts[2], key="3", topk_prompt_logprobs=1))
    none, two, five, one = responses(make_sampler(folder), *works)
    assert none.topk_prompt_logprobs_np is None
    assert none.sequences[0].topk_logprobs_np is None
    for response, k in ((two, 2), (five, 5)):
        assert response.topk_prompt_logprobs_np is not None
        assert response.topk_prompt_logprobs_np.token_ids.shape == (5, k)
        assert response.sequences[0].topk_logprobs_np is not None
        assert response.sequences[0].topk_logprobs_np.token_ids.shape == (12, 2 * k)
    assert one.topk_prompt_logprobs_np is not None
    assert five.topk_prompt_logprobs_np is not None
    assert (
        one.topk_prompt_logprobs_np.token_ids.tolist()
        == five.topk_prompt_logprobs_np.token_ids[:, :1].tolist()
    )


def test_a_prompt_of_one_token_has_one_undefined_logprob(folder: Path):
    [scored] = responses(make_sampler(folder), scoring(folder, [7], topk_prompt_logprobs=2))
    assert scored.prompt_logprobs == [None]
    assert scored.topk_prompt_logprobs == [None]
    assert len(scored.sequences[0].tokens) == 1
    sequence = sampled(make_sampler(folder), make_work(folder, [7], max_tokens=6))
    np.testing.assert_allclose(
        logprobs_of(sequence), reference_logprobs(folder, [7], sequence.tokens), atol=2e-5
    )


def test_scoring_gives_the_one_token_that_its_parameters_ask_for(folder: Path):
    tokens = some_tokens(8)
    likeliest = int(reference_logits(folder, tokens)[-1].argmax())
    [greedy] = responses(make_sampler(folder), scoring(folder, tokens, temperature=0.0))
    assert greedy.sequences[0].tokens == [likeliest]
    assert greedy.sequences[0].stop_reason == "length"
    [drawn] = responses(make_sampler(folder), scoring(folder, tokens, seed=4))
    assert (
        drawn.sequences[0].tokens
        == sampled(make_sampler(folder), make_work(folder, tokens, seed=4)).tokens[:1]
    )


# ---- draws ----


def test_one_seed_draws_one_completion_and_the_samples_of_a_request_differ(folder: Path):
    work = make_work(folder, some_tokens(6), num_samples=8, max_tokens=10)
    [first] = responses(make_sampler(folder), work)
    [again] = responses(make_sampler(folder), work)
    same(first, again)
    assert len({tuple(sequence.tokens) for sequence in first.sequences}) == 8
    [other] = responses(make_sampler(folder), make_work(folder, some_tokens(6), num_samples=8, seed=9))
    assert {tuple(s.tokens) for s in other.sequences}.isdisjoint(tuple(s.tokens) for s in first.sequences)


def test_first_tokens_follow_the_models_distribution(folder: Path):
    prompt, draws = some_tokens(5), 4000
    [response] = responses(make_sampler(folder), make_work(folder, prompt, num_samples=draws, max_tokens=1))
    counts = np.bincount([s.tokens[0] for s in response.sequences], minlength=VOCABULARY + EXTRA_ROWS)
    expected = draws * reference_logits(folder, prompt)[-1].softmax(-1).numpy()
    # Tokens that are expected less than five times go together, as the test of fit wants.
    common = expected >= 5
    counts = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    freedom = len(expected) - 1
    assert freedom > 20
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("rule", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-5}])
def test_the_narrowest_filters_are_greedy(folder: Path, rule: dict[str, float]):
    sampler, prompt = make_sampler(folder), some_tokens(6)
    greedy = sampled(sampler, make_work(folder, prompt, temperature=0.0))
    assert sampled(sampler, make_work(folder, prompt, seed=5, **rule)).tokens == greedy.tokens


def test_top_k_draws_only_among_the_likeliest(folder: Path):
    prompt = some_tokens(6)
    [response] = responses(
        make_sampler(folder),
        make_work(folder, prompt, num_samples=200, max_tokens=1, top_k=4, temperature=3.0),
    )
    likeliest = set(reference_logits(folder, prompt)[-1].topk(4).indices.tolist())
    assert {sequence.tokens[0] for sequence in response.sequences} == likeliest


# ---- adapters ----


def test_adapters_interleaved_over_the_slots_give_what_each_gives_alone(
    folder: Path, with_adapters: Callable[..., LocalSampler]
):
    prompt = some_tokens(12)
    works = [
        make_work(
            folder, prompt, key=str(i), seed=i, adapter_id=name, max_tokens=5 + 3 * i, prompt_logprobs=True
        )
        for i, name in enumerate(["a", None, "b", "a", "b", None, "a"])
    ]
    together = responses(with_adapters(), *works)
    for work, response in zip(works, together, strict=True):
        [alone] = responses(with_adapters(), work)
        same(response, alone)
        np.testing.assert_allclose(prompt_logprobs_of(response), prompt_logprobs_of(alone), atol=1e-5)
    assert len({tuple(np.round(prompt_logprobs_of(r)[1:], 3)) for r in together}) == 3


def test_top_k_of_a_pass_with_several_adapters_is_each_ones_own(
    folder: Path, with_adapters: Callable[..., LocalSampler]
):
    works = [
        scoring(folder, some_tokens(9), key=str(name), adapter_id=name, topk_prompt_logprobs=3)
        for name in ("a", None, "b")
    ]
    for work, response in zip(works, responses(with_adapters(), *works), strict=True):
        [alone] = responses(with_adapters(), work)
        assert response.topk_prompt_logprobs_np is not None
        assert alone.topk_prompt_logprobs_np is not None
        np.testing.assert_array_equal(
            response.topk_prompt_logprobs_np.token_ids, alone.topk_prompt_logprobs_np.token_ids
        )
        np.testing.assert_allclose(
            response.topk_prompt_logprobs_np.logprobs, alone.topk_prompt_logprobs_np.logprobs, atol=1e-5
        )


def test_a_dropped_adapter_serves_the_requests_that_have_it_and_no_others(
    folder: Path, with_adapters: Callable[..., LocalSampler]
):
    work = make_work(folder, some_tokens(6), adapter_id="a", key="running")
    sampler = with_adapters(max_slots=1)
    sampler.submit(work)
    sampler.step()
    sampler.submit(make_work(folder, some_tokens(6), adapter_id="a", key="waiting"))
    sampler.drop_adapter("a")
    sampler.drop_adapter("never there")
    assert not sampler.has_adapter("a")
    assert sampler.has_adapter("b")
    done = outcomes(sampler, make_work(folder, some_tokens(6), adapter_id="a", key="late"))
    expected = responses(with_adapters(), work)[0]
    for key in ("running", "waiting"):
        response = done[key]
        assert isinstance(response, SampleResponse)
        same(response, expected)
    assert isinstance(done["late"], UnknownName)
    assert "'a'" in str(done["late"])


def test_a_replaced_adapter_serves_new_requests_only(
    folder: Path, with_adapters: Callable[..., LocalSampler]
):
    sampler = with_adapters()
    sampler.submit(make_work(folder, some_tokens(6), adapter_id="a", key="before"))
    sampler.add_adapter("a", str(folder), sampler._adapters["b"][1])
    done = outcomes(sampler, make_work(folder, some_tokens(6), adapter_id="a", key="after"))
    for key, name in (("before", "a"), ("after", "b")):
        response = done[key]
        assert isinstance(response, SampleResponse)
        same(response, responses(with_adapters(), make_work(folder, some_tokens(6), adapter_id=name))[0])


def test_a_saved_adapter_samples_as_the_one_in_memory(
    folder: Path, tmp_path: Path, with_adapters: Callable[..., LocalSampler]
):
    sampler = with_adapters()
    adapter = sampler._adapters["a"][1]
    write_adapter(
        tmp_path, {path: (p.a, p.b) for path, p in adapter.pairs.items()}, adapter.config, str(folder)
    )
    sampler.load_adapter("loaded", str(folder), tmp_path)
    assert sampler.has_adapter("loaded")
    one, other = responses(
        sampler,
        make_work(folder, some_tokens(6), adapter_id="a", key="1"),
        make_work(folder, some_tokens(6), adapter_id="loaded", key="2"),
    )
    same(one, other)
