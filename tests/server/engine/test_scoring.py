"""What a request may ask about its prompt, against transformers' own forward and against asking alone."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.server.engine.sampling import (
    EXTRA_ROWS,
    VOCABULARY,
    make_adapter,
    make_sampler,
    make_work,
    model_of,
    prompt_logprobs_of,
    reference_logits,
    reference_logprobs,
    responses,
    same,
    scoring,
    some_tokens,
)
from tinkerlite.types import PromptAltTokens, SampleResponse, TensorData
from tinkerlite_server.engine.lora import AdapterRows
from tinkerlite_server.engine.sampler import LocalSampler

ROWS = VOCABULARY + EXTRA_ROWS


def some_targets(rows: int, k: int, seed: int = 0) -> TensorData:
    """(rows, k) ids, of which about a third ask for nothing."""
    random = np.random.default_rng(seed)
    ids = random.integers(0, VOCABULARY, (rows, k))
    ids[random.random(ids.shape) < 0.35] = -1
    return TensorData(ids)


def targets_of(response: SampleResponse) -> TensorData:
    assert response.target_prompt_logprobs is not None
    return response.target_prompt_logprobs


def alternatives_of(response: SampleResponse) -> PromptAltTokens:
    assert response.prompt_alt_tokens is not None
    return response.prompt_alt_tokens


def gathered(folder: Path, prompt: Any, ids: np.ndarray, *reference: Any) -> np.ndarray:
    """log p of ids[i] at prompt position i + 1, by log-softmax over transformers' logits; 0 for -1."""
    table = reference_logits(folder, prompt, *reference).log_softmax(-1).numpy()[:-1]
    return np.where(ids >= 0, np.take_along_axis(table, ids.clip(0), -1), 0.0)


# ---- targets ----


def test_target_logprobs_equal_gathering_from_transformers_log_softmax(any_folder: Path):
    prompt, targets = some_tokens(30), some_targets(29, 5)
    work = scoring(any_folder, prompt, target_prompt_logprobs=targets)
    [response] = responses(make_sampler(any_folder), work)
    got = targets_of(response)
    assert (got.dtype, got.shape, got.is_sparse) == ("float32", [29, 5], False)
    expected = gathered(any_folder, prompt, targets.to_numpy())
    np.testing.assert_allclose(got.to_numpy(), expected, atol=2e-5, rtol=0)
    assert (got.to_numpy()[targets.to_numpy() == -1] == 0).all()


def test_sparse_targets_are_answered_cell_by_cell_in_their_own_layout(any_folder: Path):
    prompt = some_tokens(30)
    dense = some_targets(29, 7)
    dense.to_numpy()[3:9] = -1  # whole rows may be empty
    sparse = dense.to_csr(pad_value=-1)
    works = [
        scoring(any_folder, prompt, key=key, target_prompt_logprobs=targets)
        for key, targets in (("dense", dense), ("sparse", sparse))
    ]
    full, listed = map(targets_of, responses(make_sampler(any_folder), *works))
    assert listed.is_sparse
    assert listed.shape == [29, 7]
    assert listed.sparse_crow_indices == sparse.sparse_crow_indices
    assert listed.sparse_col_indices == sparse.sparse_col_indices
    np.testing.assert_array_equal(listed.to_numpy(), full.to_numpy())
    np.testing.assert_allclose(
        full.to_numpy(), gathered(any_folder, prompt, dense.to_numpy()), atol=2e-5, rtol=0
    )


def test_a_listed_cell_of_minus_one_asks_for_nothing_either(folder: Path):
    targets = TensorData([4, -1, 5], "int64", [2, 9], [0, 2, 3], [0, 8, 3])
    [response] = responses(
        make_sampler(folder), scoring(folder, some_tokens(3), target_prompt_logprobs=targets)
    )
    first, second, third = targets_of(response).values.tolist()
    assert second == 0.0
    assert first < 0 > third


def test_targets_that_are_the_prompt_have_its_logprobs(folder: Path):
    prompt = some_tokens(12)
    work = scoring(folder, prompt, target_prompt_logprobs=TensorData(prompt[1:, None]))
    [response] = responses(make_sampler(folder), work)
    np.testing.assert_array_equal(targets_of(response).to_numpy()[:, 0], prompt_logprobs_of(response)[1:])


def test_targets_under_an_adapter_are_those_of_its_merged_weights(any_folder: Path):
    sampler, prompt, targets = make_sampler(any_folder), some_tokens(20), some_targets(19, 4)
    adapter = make_adapter(model_of(sampler, any_folder), seed=3)
    sampler.add_adapter("a", str(any_folder), adapter)
    [response] = responses(
        sampler, make_work(any_folder, prompt, adapter_id="a", target_prompt_logprobs=targets)
    )
    expected = gathered(any_folder, prompt, targets.to_numpy(), adapter)
    np.testing.assert_allclose(targets_of(response).to_numpy(), expected, atol=5e-5, rtol=0)


# ---- alternatives ----


def test_alternatives_come_with_their_untempered_logprobs(any_folder: Path):
    prompt = some_tokens(25)
    work = make_work(any_folder, prompt, prompt_alt_tokens_k=6, temperature=1.7, max_tokens=1)
    [response] = responses(make_sampler(any_folder), work)
    drawn = alternatives_of(response)
    assert (drawn.tokens.dtype, drawn.tokens.shape) == ("int64", [24, 6])
    assert (drawn.logprobs.dtype, drawn.logprobs.shape) == ("float32", [24, 6])
    expected = gathered(any_folder, prompt, drawn.tokens.to_numpy())
    np.testing.assert_allclose(drawn.logprobs.to_numpy(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.5])
def test_alternatives_follow_the_models_distribution_at_the_temperature_at_every_position(
    folder: Path, temperature: float
):
    prompt, draws = some_tokens(6), 2000
    # top_k and top_p shape completions; alternatives are drawn from the whole distribution.
    work = make_work(
        folder, prompt, prompt_alt_tokens_k=draws, temperature=temperature, max_tokens=1, top_k=2, top_p=0.5
    )
    [response] = responses(make_sampler(folder), work)
    table = (reference_logits(folder, prompt)[:-1] / temperature).softmax(-1).numpy()
    for tokens, chances in zip(alternatives_of(response).tokens.to_numpy(), table, strict=True):
        counts, expected = np.bincount(tokens, minlength=ROWS), draws * chances
        # Tokens that are expected less than five times go together, as the test of fit wants.
        common = expected >= 5
        counts = np.append(counts[common], counts[~common].sum())
        expected = np.append(expected[common], expected[~common].sum())
        freedom = len(expected) - 1
        assert freedom > 10
        assert ((counts - expected) ** 2 / expected).sum() < freedom + 4 * math.sqrt(2 * freedom)


def test_greedy_alternatives_are_the_likeliest_token_again_and_again(folder: Path):
    prompt = some_tokens(9)
    work = make_work(folder, prompt, prompt_alt_tokens_k=3, temperature=0.0, max_tokens=1)
    [response] = responses(make_sampler(folder), work)
    likeliest = reference_logits(folder, prompt)[:-1].argmax(-1).numpy()
    np.testing.assert_array_equal(
        alternatives_of(response).tokens.to_numpy(), np.repeat(likeliest[:, None], 3, axis=1)
    )


def test_one_seed_draws_the_same_alternatives_whoever_is_beside_and_however_rows_are_cut(
    folder: Path, with_adapters: Callable[..., LocalSampler]
):
    start = some_tokens(10)
    works = [
        make_work(
            folder,
            [*start, *some_tokens(2 + 3 * i, seed=i)],
            key=str(i),
            adapter_id=[None, "a", "b"][i % 3],
            prompt_alt_tokens_k=1 + i,
            prompt_seed=100 + i,
            temperature=[1.0, 0.7][i % 2],
        )
        for i in range(6)
    ]
    # The same prompt with another seed and temperature: read once for both, drawn for each.
    works.append(dataclasses.replace(works[4], key="6", prompt_seed=7, temperature=1.3))
    together = responses(with_adapters(head_chunk=5), *works)
    for work, response in zip(works, together, strict=True):
        [alone] = responses(with_adapters(), work)
        same(response, alone)
        assert alternatives_of(response).tokens.tolist() == alternatives_of(alone).tokens.tolist()
    assert alternatives_of(together[4]).tokens.tolist() != alternatives_of(together[6]).tokens.tolist()


def test_asking_about_the_prompt_leaves_the_completion_as_it_was(folder: Path):
    prompt = some_tokens(8)
    plain = make_work(folder, prompt, num_samples=3)
    curious = make_work(
        folder,
        prompt,
        num_samples=3,
        prompt_logprobs=True,
        topk_prompt_logprobs=2,
        target_prompt_logprobs=some_targets(7, 2),
        prompt_alt_tokens_k=2,
    )
    sampler = make_sampler(folder)
    same(*responses(sampler, plain), *responses(sampler, curious))


# ---- the last n ----


def test_before_the_last_n_nothing_is_scored_and_from_there_on_everything_as_ever(any_folder: Path):
    prompt = some_tokens(20)
    [response] = responses(
        make_sampler(any_folder),
        scoring(any_folder, prompt, topk_prompt_logprobs=3, prompt_logprobs_last_n=6),
    )
    scored, topk = prompt_logprobs_of(response), response.topk_prompt_logprobs
    assert np.isnan(scored[:14]).all()
    expected = reference_logprobs(any_folder, prompt[:14], prompt[14:])
    np.testing.assert_allclose(scored[14:], expected, atol=2e-5, rtol=0)
    assert topk is not None
    assert [row is None for row in topk] == [True] * 14 + [False] * 6
    ranked = reference_logits(any_folder, prompt)[13:-1].topk(3).indices
    assert [[token for token, _ in row or []] for row in topk[14:]] == ranked.tolist()


def test_the_last_n_says_nothing_of_targets_and_alternatives(folder: Path):
    prompt, targets = some_tokens(10), some_targets(9, 3)
    asked: dict[str, Any] = {"target_prompt_logprobs": targets, "prompt_alt_tokens_k": 2}
    all_of_it, the_last = responses(
        make_sampler(folder),
        scoring(folder, prompt, key="1", **asked),
        scoring(folder, prompt, key="2", prompt_logprobs_last_n=1, **asked),
    )
    assert targets_of(all_of_it).tolist() == targets_of(the_last).tolist()
    assert alternatives_of(all_of_it).tokens.tolist() == alternatives_of(the_last).tokens.tolist()


# ---- what it costs ----


@pytest.fixture
def unembedded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[LocalSampler], list[int]]:
    """From now on, the number of rows of every call of this sampler's unembedding."""

    def watch(sampler: LocalSampler) -> list[int]:
        rows: list[int] = []
        model = model_of(sampler, folder)
        logits = model.logits

        def counted(
            hidden: torch.Tensor, adapters: list[AdapterRows], room: torch.Tensor | None = None
        ) -> torch.Tensor:
            rows.append(len(hidden))
            return logits(hidden, adapters, room)

        monkeypatch.setattr(model, "logits", counted)
        return rows

    return watch


def test_only_rows_that_are_asked_about_are_unembedded(
    folder: Path, unembedded: Callable[[LocalSampler], list[int]]
):
    sampler = make_sampler(folder)
    rows = unembedded(sampler)
    responses(sampler, scoring(folder, some_tokens(100), prompt_logprobs_last_n=4))
    assert sum(rows) == 4 + 1  # and the one from which the first token is drawn
    rows.clear()
    targets = np.full((99, 2), -1)
    targets[50, 1] = 7
    responses(
        sampler, make_work(folder, some_tokens(100), max_tokens=1, target_prompt_logprobs=TensorData(targets))
    )
    assert sum(rows) == 1 + 1


def test_however_many_questions_are_asked_a_row_is_unembedded_once_and_few_rows_at_a_time(
    folder: Path, unembedded: Callable[[LocalSampler], list[int]]
):
    sampler = make_sampler(folder, head_chunk=16)
    rows = unembedded(sampler)
    prompt = some_tokens(100)
    questions: list[dict[str, Any]] = [
        {"prompt_logprobs": True},
        {"topk_prompt_logprobs": 5, "prompt_logprobs": True},
        {"target_prompt_logprobs": some_targets(99, 3)},
        {"prompt_alt_tokens_k": 2},
    ]
    works = [
        make_work(folder, prompt, key=str(i), max_tokens=1, **asked) for i, asked in enumerate(questions)
    ]
    responses(sampler, *works)
    assert sum(rows) == 99 + len(works)
    assert max(rows) == 16


def test_requests_with_different_questions_about_one_prompt_each_get_their_own_answers(folder: Path):
    prompt = some_tokens(11)
    questions: list[dict[str, Any]] = [
        {},
        {"prompt_logprobs": True, "prompt_logprobs_last_n": 2},
        {"topk_prompt_logprobs": 2},
        {"topk_prompt_logprobs": 4, "target_prompt_logprobs": some_targets(10, 3)},
        {"prompt_alt_tokens_k": 3, "prompt_seed": 5},
    ]
    works = [make_work(folder, prompt, key=str(i), **asked) for i, asked in enumerate(questions)]
    together = responses(make_sampler(folder), *works)
    for work, response in zip(works, together, strict=True):
        [alone] = responses(make_sampler(folder), work)
        assert response.prompt_logprobs == (
            None if alone.prompt_logprobs is None else pytest.approx(alone.prompt_logprobs, abs=1e-5)
        )
        for got, expected in (
            (response.target_prompt_logprobs, alone.target_prompt_logprobs),
            (
                response.prompt_alt_tokens and response.prompt_alt_tokens.logprobs,
                alone.prompt_alt_tokens and alone.prompt_alt_tokens.logprobs,
            ),
        ):
            assert (got is None) == (expected is None)
            if got is not None and expected is not None:
                np.testing.assert_allclose(got.to_numpy(), expected.to_numpy(), atol=1e-5)
        if alone.topk_prompt_logprobs_np is None:
            assert response.topk_prompt_logprobs_np is None
        else:
            assert response.topk_prompt_logprobs_np is not None
            np.testing.assert_array_equal(
                response.topk_prompt_logprobs_np.token_ids, alone.topk_prompt_logprobs_np.token_ids
            )


def test_a_prompt_of_one_token_has_no_position_to_ask_about(folder: Path):
    [response] = responses(make_sampler(folder), make_work(folder, [7], prompt_alt_tokens_k=2, max_tokens=1))
    assert alternatives_of(response).tokens.shape == [0, 2]
