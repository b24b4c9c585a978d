"""Continuous batching: a crowd gets what each would get alone, and one failure is nobody else's."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from tests.server.engine.sampling import (
    EXTRA_ROWS,
    VOCABULARY,
    logprobs_of,
    make_sampler,
    make_work,
    model_of,
    outcomes,
    prompt_logprobs_of,
    responses,
    same,
    sampled,
    scoring,
    some_tokens,
)
from tests.tiny import IM_END, make_tiny_model
from tinkerlite.types import SampleResponse
from tinkerlite_server.engine.logprobs import target_logprobs
from tinkerlite_server.engine.lora import Adapter, LoraPair
from tinkerlite_server.engine.protocols import AdapterConfig, SampledToken, SampleWork
from tinkerlite_server.engine.sampler import LocalSampler
from tinkerlite_server.engine.streams import PackedStream
from tinkerlite_server.errors import BadRequest, EngineFailure, ServerError, UnknownName

RowsOfPasses = Callable[[LocalSampler], list[int]]

# ---- crowds ----


def mixed_works(folder: Path) -> list[SampleWork]:
    """Prompts, lengths, rules and sample counts of many kinds; two prompts equal, some alike."""
    shared = some_tokens(30, seed=99)
    settings: list[dict[str, Any]] = [
        {"prompt": some_tokens(5), "max_tokens": 3},
        {"prompt": some_tokens(5), "max_tokens": 17, "num_samples": 3, "seed": 1},
        {"prompt": [*shared, 5], "max_tokens": 9, "temperature": 0.5},
        {"prompt": [*shared, 6, 7], "max_tokens": 30, "top_k": 20, "num_samples": 2},
        {"prompt": shared, "max_tokens": 1, "prompt_logprobs": True},
        {"prompt": some_tokens(80, seed=2), "max_tokens": 25, "top_p": 0.8, "prompt_logprobs": True},
        {"prompt": [9], "max_tokens": 40, "temperature": 0.0},
        {"prompt": some_tokens(20, seed=3), "max_tokens": 2, "num_samples": 5, "topk_sample_logprobs": 2},
    ]
    return [make_work(folder, **{"seed": i, "key": str(i), **kinds}) for i, kinds in enumerate(settings)]


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"max_slots": 1},
        {"max_slots": 3},
        {"max_score_tokens": 16},
        {"head_chunk": 2},
        {"max_cache_bytes": 1},
        {"max_cache_bytes": 200_000, "max_slots": 5, "max_score_tokens": 40},
    ],
)
def test_a_crowd_gets_what_each_would_get_alone(folder: Path, limits: dict[str, Any]):
    works = mixed_works(folder)
    together = responses(make_sampler(folder, **limits), *works)
    for work, response in zip(works, together, strict=True):
        [alone] = responses(make_sampler(folder), work)
        same(response, alone)
        if work.prompt_logprobs:
            np.testing.assert_allclose(prompt_logprobs_of(response), prompt_logprobs_of(alone), atol=1e-5)


def test_requests_that_join_a_running_batch_get_what_they_would_get_alone(folder: Path):
    sampler, works = make_sampler(folder, max_slots=4), mixed_works(folder)
    done: dict[str, SampleResponse | ServerError] = {}
    for work in works:
        sampler.submit(work)
        for _ in range(3):
            done |= {result.key: result.outcome for result in sampler.step()}
    done |= outcomes(sampler)
    for work in works:
        response = done[work.key]
        assert isinstance(response, SampleResponse)
        same(response, responses(make_sampler(folder), work)[0])


def test_more_samples_than_slots_all_come_and_their_prompt_is_read_once(
    folder: Path, rows_of_passes: RowsOfPasses
):
    work = make_work(folder, some_tokens(50), num_samples=40, max_tokens=6)
    sampler = make_sampler(folder, max_slots=4)
    rows = rows_of_passes(sampler)
    [few_slots] = responses(sampler, work)
    # 50 rows for the prompt; then ten times five passes over four samples.
    assert rows == [50] + [4] * 50
    [enough_slots] = responses(make_sampler(folder), work)
    same(few_slots, enough_slots)


def test_equal_prompts_of_several_requests_are_read_once(folder: Path, rows_of_passes: RowsOfPasses):
    works = [make_work(folder, some_tokens(60), key=str(i), seed=i, max_tokens=2) for i in range(6)]
    sampler = make_sampler(folder)
    rows = rows_of_passes(sampler)
    responses(sampler, *works)
    assert rows == [60, 6]


def test_completions_of_one_prompt_are_scored_with_the_prompt_read_once(
    folder: Path, rows_of_passes: RowsOfPasses
):
    prompt = some_tokens(100)
    works = [scoring(folder, [*prompt, *some_tokens(10, seed=i)], key=str(i)) for i in range(8)]
    sampler = make_sampler(folder)
    rows = rows_of_passes(sampler)
    together = responses(sampler, *works)
    assert rows == [100 + 8 * 10]
    for work, response in zip(works, together, strict=True):
        [alone] = responses(make_sampler(folder), work)
        np.testing.assert_allclose(prompt_logprobs_of(response), prompt_logprobs_of(alone), atol=1e-5)


def test_a_pass_over_prompts_is_bounded_and_a_longer_prompt_goes_alone(
    folder: Path, rows_of_passes: RowsOfPasses
):
    works = [scoring(folder, some_tokens(40, seed=i), key=str(i)) for i in range(5)]
    works.insert(2, scoring(folder, some_tokens(150, seed=9), key="long"))
    sampler = make_sampler(folder, max_score_tokens=100)
    rows = rows_of_passes(sampler)
    responses(sampler, *works)
    assert rows == [80, 150, 80, 40]


def test_first_come_first_served_so_that_a_large_request_is_not_starved_by_small_ones(folder: Path):
    sampler = make_sampler(folder, max_slots=4)
    for i in range(4):
        sampler.submit(make_work(folder, some_tokens(5, seed=i), key=f"early {i}", max_tokens=8 + i))
    sampler.submit(make_work(folder, some_tokens(50), key="large", num_samples=8, max_tokens=10))
    order: list[str] = []
    for i in range(80):
        sampler.submit(make_work(folder, some_tokens(5, seed=i), key=f"late {i}", max_tokens=8))
        order += [result.key for result in sampler.step()]
    assert order.index("large") < order.index("late 0")


def test_a_request_that_waits_for_memory_is_not_overtaken_by_smaller_ones(folder: Path):
    sampler = make_sampler(folder, max_cache_bytes=4 * 64 * 512)  # four samples of 64 tokens, or one of 256
    sampler.submit(make_work(folder, some_tokens(5), key="early", max_tokens=20))
    sampler.step()
    sampler.submit(make_work(folder, some_tokens(5), key="large", max_tokens=230))
    order = [*outcomes(sampler, make_work(folder, some_tokens(5), key="late", max_tokens=2))]
    assert order == ["early", "large", "late"]


def test_decoding_waits_until_there_is_no_room_or_no_prompt_to_fill_it(
    folder: Path, rows_of_passes: RowsOfPasses
):
    works = [make_work(folder, some_tokens(40, seed=i), key=str(i), max_tokens=3) for i in range(4)]
    sampler = make_sampler(folder, max_score_tokens=40, max_slots=3)
    rows = rows_of_passes(sampler)
    responses(sampler, *works)
    assert rows == [40, 40, 40, 3, 3, 40, 1, 1]


def test_scoring_needs_no_slot_and_does_not_wait_for_one(folder: Path):
    sampler = make_sampler(folder, max_slots=1)
    sampler.submit(make_work(folder, some_tokens(5), key="long", max_tokens=100))
    sampler.step()
    sampler.submit(make_work(folder, some_tokens(5), key="next", max_tokens=100))
    sampler.submit(scoring(folder, some_tokens(9), key="score"))
    assert [result.key for result in sampler.step()] == ["score"]


def test_a_cache_too_small_for_all_makes_them_take_turns(folder: Path, rows_of_passes: RowsOfPasses):
    # 2 layers x keys and values x 2 heads x 16 x 4 bytes = 512 bytes a token; a slot of 64 tokens has 32 KiB.
    works = [make_work(folder, some_tokens(5, seed=i), key=str(i), max_tokens=4) for i in range(4)]
    sampler = make_sampler(folder, max_cache_bytes=2 * 64 * 512)
    rows = rows_of_passes(sampler)
    responses(sampler, *works)
    assert rows == [10, 2, 2, 2, 10, 2, 2, 2]


def test_requests_for_two_base_models_run_side_by_side(folder: Path, any_folder: Path):
    sampler = make_sampler(folder, any_folder)
    works = [make_work(f, some_tokens(6), key=str(f), max_tokens=20) for f in (folder, any_folder)]
    for work, response in zip(works, responses(sampler, *works), strict=True):
        same(response, responses(make_sampler(Path(work.base_model)), work)[0])


# ---- ends ----


def test_a_stop_id_ends_the_completion_and_is_kept(folder: Path):
    sampler, prompt = make_sampler(folder), some_tokens(6)
    free = sampled(sampler, make_work(folder, prompt, max_tokens=20))
    assert len(free.tokens) == 20
    assert free.stop_reason == "length"
    wanted = free.tokens[8]
    length = free.tokens.index(wanted) + 1
    stopped = sampled(sampler, make_work(folder, prompt, max_tokens=20, stop_ids=frozenset([wanted, IM_END])))
    assert stopped.tokens == free.tokens[:length]
    assert stopped.stop_reason == "stop"
    np.testing.assert_allclose(logprobs_of(stopped), logprobs_of(free)[:length], atol=1e-5)


def test_a_stop_string_ends_the_completion_and_the_tokens_that_complete_it_are_kept(folder: Path):
    sampler, prompt = make_sampler(folder), some_tokens(6)
    free = sampled(sampler, make_work(folder, prompt, max_tokens=20))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [tokenizer.decode(free.tokens[:n]) for n in range(21)]
    # The last character of the eleventh token and the first of the twelfth.
    stop = texts[11][-1] + texts[12][len(texts[11])]
    length = next(n for n, text in enumerate(texts) if stop in text)
    stopped = sampled(sampler, make_work(folder, prompt, max_tokens=20, stop_strings=("never there", stop)))
    assert stopped.tokens == free.tokens[:length]
    assert stopped.stop_reason == "stop"


def test_a_completion_may_stop_at_its_first_token(folder: Path):
    everything = frozenset(range(VOCABULARY + EXTRA_ROWS))
    work = make_work(folder, some_tokens(6), num_samples=3, stop_ids=everything)
    [response] = responses(make_sampler(folder, max_slots=1), work)
    assert [(len(s.tokens), s.stop_reason) for s in response.sequences] == [(1, "stop")] * 3


def test_cancelled_requests_yield_nothing_and_leave_the_others_alone(folder: Path):
    sampler = make_sampler(folder, max_slots=4)
    works = [make_work(folder, some_tokens(5 + i), key=str(i), seed=i, max_tokens=10 + i) for i in range(6)]
    for work in works:
        sampler.submit(work)
    for _ in range(4):
        sampler.step()
    for key in ("0", "2", "5", "unknown"):  # two running, one waiting
        sampler.cancel(key)
    done = outcomes(sampler)
    assert sorted(done) == ["1", "3", "4"]
    for key, response in done.items():
        assert isinstance(response, SampleResponse)
        same(response, responses(make_sampler(folder), works[int(key)])[0])


def test_cancelling_the_last_request_leaves_nothing_behind(folder: Path):
    sampler = make_sampler(folder)
    sampler.submit(make_work(folder, some_tokens(5), key="1"))
    sampler.submit(make_work(folder, some_tokens(5), key="2", base_model="no/such-model"))
    sampler.cancel("1")
    sampler.cancel("2")
    assert not sampler.has_work
    assert not sampler._batchers
    assert sampler.step() == []


def test_an_idle_sampler_holds_no_model(folder: Path):
    sampler = make_sampler(folder)
    assert not sampler.has_work
    responses(sampler, make_work(folder, some_tokens(5)))
    assert not sampler.has_work
    assert not sampler._batchers


def test_a_model_that_sampling_loaded_can_be_trained(folder: Path):
    sampler = make_sampler(folder)
    responses(sampler, make_work(folder, some_tokens(5)))
    model = model_of(sampler, folder)
    adapter = Adapter.fresh(AdapterConfig(rank=2, alpha=2.0, seed=0), model.bank.targets)
    stream = PackedStream([some_tokens(5)], [adapter], model.device)
    rows, targets = torch.arange(4), torch.from_numpy(some_tokens(5)[1:])
    target_logprobs(model, model.hidden(stream), stream.adapters, rows, targets, 256).sum().backward()
    assert all(pair.b.grad is not None and pair.b.grad.any() for pair in adapter.pairs.values())


# ---- failures ----


@pytest.fixture
def untied(tmp_path: Path) -> tuple[LocalSampler, Path]:
    """A model of its own, to be spoiled."""
    folder = make_tiny_model(tmp_path / "untied", tie_embeddings=False)
    return make_sampler(folder, max_slots=4), folder


def test_what_a_request_names_wrongly_is_its_result(folder: Path, with_adapters: Callable[..., LocalSampler]):
    sampler = with_adapters()
    sampler._adapters["other"] = ("another model", sampler._adapters["a"][1])
    done = outcomes(
        sampler,
        make_work(folder, [5], key="adapter", adapter_id="c"),
        make_work(folder, [5], key="pair", adapter_id="other"),
        make_work(folder, [5], key="model", base_model="no/such-model"),
        make_work(folder, [5], key="model and stop", base_model="no/such-model", stop_strings=("x",)),
        make_work(folder, [5], key="stop", stop_strings=("",)),
        make_work(folder, [5], key="fine"),
    )
    assert isinstance(done["adapter"], UnknownName)
    assert isinstance(done["pair"], BadRequest)
    assert "another model" in str(done["pair"])
    assert isinstance(done["model"], UnknownName)
    assert "no/such-model" in str(done["model"])
    assert isinstance(done["model and stop"], UnknownName)
    assert isinstance(done["stop"], BadRequest)
    assert isinstance(done["fine"], SampleResponse)


def test_a_request_that_cannot_be_computed_fails_alone(
    folder: Path, with_adapters: Callable[..., LocalSampler]
):
    sampler = with_adapters()
    misfit = Adapter(AdapterConfig(rank=2, alpha=2.0, seed=0), dict(sampler._adapters["a"][1].pairs))
    misfit.pairs["model.layers.1.mlp.up_proj"] = LoraPair(torch.zeros(2, 3), torch.zeros(5, 2))
    sampler.add_adapter("misfit", str(folder), misfit)
    works = [
        make_work(folder, some_tokens(6, seed=i), key=str(i), seed=i, adapter_id=name)
        for i, name in enumerate(["a", "misfit", None, "misfit"])
    ]
    done = outcomes(sampler, *works)
    for key in ("1", "3"):
        assert isinstance(done[key], EngineFailure)
        assert "reading the prompt failed" in str(done[key])
    for key in ("0", "2"):
        response = done[key]
        assert isinstance(response, SampleResponse)
        same(response, responses(with_adapters(), works[int(key)])[0])


def test_nan_weights_fail_the_requests_that_use_them_and_no_others(
    folder: Path, with_adapters: Callable[..., LocalSampler]
):
    sampler = with_adapters()
    diverged = sampler._adapters["b"][1]
    diverged.pairs["model.layers.0.mlp.up_proj"].b.fill_(math.nan)
    works = [
        make_work(folder, some_tokens(12), key="fine", adapter_id="a"),
        make_work(folder, some_tokens(12), key="sample", adapter_id="b", num_samples=3),
        scoring(folder, some_tokens(12), key="score", adapter_id="b"),
        make_work(folder, some_tokens(12), key="bare"),
    ]
    done = outcomes(sampler, *works)
    for key in ("sample", "score"):
        assert isinstance(done[key], EngineFailure)
        assert "not finite" in str(done[key])
    for key, work in (("fine", works[0]), ("bare", works[3])):
        response = done[key]
        assert isinstance(response, SampleResponse)
        same(response, responses(with_adapters(), work)[0])


def test_nan_in_the_middle_of_decoding_spoils_neither_neighbours_nor_who_gets_the_slot_next(
    untied: tuple[LocalSampler, Path],
):
    sampler, folder = untied
    works = [
        make_work(folder, some_tokens(6, seed=i), key=str(i), seed=i, max_tokens=9 + i) for i in range(12)
    ]
    clean = [sampled(sampler, work).tokens for work in works]
    # A token whose embedding is NaN spoils the sample that draws it, from the next token on.
    poison = clean[1][4]
    embedding = model_of(sampler, folder)._body.get_input_embeddings().weight
    embedding[poison] = math.nan
    done = outcomes(sampler, *works)
    spoiled = [i for i, tokens in enumerate(clean) if poison in [*works[i].prompt, *tokens[:-1]]]
    assert 1 in spoiled
    assert len(spoiled) < 6
    for i, tokens in enumerate(clean):
        outcome = done[str(i)]
        if i in spoiled:
            assert isinstance(outcome, EngineFailure)
        else:
            assert isinstance(outcome, SampleResponse)
            assert outcome.sequences[0].tokens == tokens
            assert np.isfinite(logprobs_of(outcome.sequences[0])).all()


def test_a_slot_in_which_a_sample_went_wrong_is_clean_for_the_next(untied: tuple[LocalSampler, Path]):
    sampler, folder = untied
    # Beside a long neighbour, decoding reads a slot beyond its own sample's tokens, masked: NaN would show.
    long = make_work(folder, some_tokens(60), key="long", max_tokens=60)
    wrong = make_work(folder, some_tokens(20, seed=1), key="wrong", max_tokens=20)
    short = make_work(folder, some_tokens(3, seed=2), key="short", max_tokens=5)
    before = sampled(sampler, wrong)
    model_of(sampler, folder)._body.get_input_embeddings().weight[before.tokens[3]] = math.nan
    sampler.submit(long)
    sampler.submit(wrong)
    done: dict[str, SampleResponse | ServerError] = {}
    while "wrong" not in done:
        done |= {result.key: result.outcome for result in sampler.step()}
    assert isinstance(done["wrong"], EngineFailure)
    done |= outcomes(sampler, short)
    assert isinstance(done["short"], SampleResponse)
    assert isinstance(done["long"], SampleResponse)


def test_one_sample_gone_wrong_ends_its_whole_request_once(untied: tuple[LocalSampler, Path]):
    sampler, folder = untied
    work = make_work(folder, some_tokens(6), num_samples=10, max_tokens=8)
    [clean] = responses(sampler, work)
    poison = clean.sequences[2].tokens[3]
    model_of(sampler, folder)._body.get_input_embeddings().weight[poison] = math.nan
    done = outcomes(sampler, work)
    assert isinstance(done["work"], EngineFailure)
    assert not sampler.has_work


# ---- streaming ----


def test_works_that_stream_report_every_token_of_their_response_in_the_step_that_makes_it(folder: Path):
    sampler = make_sampler(folder, max_slots=3)
    works = [
        make_work(folder, some_tokens(5), key="streams", num_samples=4, topk_sample_logprobs=2, stream=True),
        make_work(folder, some_tokens(6), key="waits", num_samples=2, topk_sample_logprobs=3),
        make_work(folder, some_tokens(7), key="one token", max_tokens=1, stream=True),
    ]
    for work in works:
        sampler.submit(work)
    tokens: dict[tuple[str, int], list[SampledToken]] = {}
    done: dict[str, SampleResponse | ServerError] = {}
    steps = 0
    while sampler.has_work:
        steps += 1
        for result in sampler.step():
            assert result.key not in done
            if isinstance(result, SampledToken):
                tokens.setdefault((result.key, result.index), []).append(result)
            else:
                done[result.key] = result.outcome
    assert steps > 12
    assert {key for key, _ in tokens} == {"streams", "one token"}
    for work in (works[0], works[2]):
        response = done[work.key]
        assert isinstance(response, SampleResponse)
        for index, sequence in enumerate(response.sequences):
            streamed = tokens[work.key, index]
            assert [each.token for each in streamed] == sequence.tokens
            assert [each.logprob for each in streamed] == pytest.approx(sequence.logprobs)
            reasons = [None] * (len(sequence.tokens) - 1) + [sequence.stop_reason]
            assert [each.stop_reason for each in streamed] == reasons
            if sequence.topk_logprobs is not None:
                assert [each.topk for each in streamed] == sequence.topk_logprobs
        same(response, responses(make_sampler(folder), replace(work, stream=False))[0])
