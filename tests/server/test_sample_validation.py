from __future__ import annotations

from typing import Any

import pytest

from tests.server.toy_engine import END_OF_TEXT, MAX_CONTEXT, VOCAB, ToyEngine
from tinkerlite.types import ModelInput, SamplingParams, TensorData
from tinkerlite_server.engine.protocols import SampleWork
from tinkerlite_server.errors import BadRequest
from tinkerlite_server.sample_validation import SampleQuestion, prompt_seed, sample_seeds, sample_work
from tinkerlite_server.settings import Limits

INFO = ToyEngine().catalog["toy"]


def work(
    prompt: list[int] | None = None, *, params: dict[str, Any] | None = None, **fields: Any
) -> SampleWork:
    question = SampleQuestion(
        prompt=ModelInput.from_ints([1, 2, 3] if prompt is None else prompt),
        params=SamplingParams(**(params or {})),
        **fields,
    )
    return sample_work(question, INFO, Limits(max_topk=50, max_topk_values=100), key="k", adapter_id=None)


def ids(rows: Any) -> TensorData:
    return TensorData(rows, "int64")


def test_without_stops_the_models_end_of_text_stops():
    assert work().stop_ids == {END_OF_TEXT}


def test_an_empty_list_stops_nothing():
    stops = work(params={"stop": []})
    assert (stops.stop_ids, stops.stop_strings) == (frozenset(), ())


def test_stop_ids_replace_the_end_of_text():
    assert work(params={"stop": [4, 5]}).stop_ids == {4, 5}


@pytest.mark.parametrize("stop", ["\n", ["\n"]])
def test_stop_strings_come_on_top_of_the_end_of_text(stop: Any):
    stops = work(params={"stop": stop})
    assert (stops.stop_ids, stops.stop_strings) == ({END_OF_TEXT}, ("\n",))


def test_max_tokens_is_cut_to_what_the_context_still_holds():
    assert work([1] * 30, params={"max_tokens": 100}).max_tokens == MAX_CONTEXT - 30
    assert work([1] * 30).max_tokens == MAX_CONTEXT - 30
    assert work([1] * 30, params={"max_tokens": 1}).max_tokens == 1


def test_a_full_context_can_still_be_scored():
    assert work([1] * MAX_CONTEXT, params={"max_tokens": 1}, prompt_logprobs=True).max_tokens == 1


def test_top_k_off_is_zero_to_the_engine():
    assert [work(params={"top_k": k}).top_k for k in (-1, 0, 5)] == [0, 0, 5]


def test_each_sample_has_its_own_seed_and_one_seed_gives_the_same_again():
    assert sample_seeds(7, 3) == sample_seeds(7, 3)
    assert len(set(sample_seeds(7, 3))) == 3
    assert sample_seeds(7, 2) == sample_seeds(7, 3)[:2]
    assert sample_seeds(7, 1) != sample_seeds(8, 1)
    assert sample_seeds(None, 1) != sample_seeds(None, 1)


def test_what_is_drawn_along_the_prompt_has_a_seed_of_its_own():
    assert prompt_seed(7) == prompt_seed(7) != prompt_seed(8)
    assert prompt_seed(7) not in sample_seeds(7, 100)
    assert prompt_seed(None) != prompt_seed(None)


def test_more_tokens_may_be_drawn_at_a_position_than_there_are():
    assert work([1, 2], prompt_alt_tokens_k=2 * VOCAB).prompt_alt_tokens_k == 2 * VOCAB


@pytest.mark.parametrize(
    ("prompt", "params", "fields", "message"),
    [
        ([], {}, {}, "prompt is empty"),
        ([VOCAB], {}, {}, rf"prompt has token id {VOCAB} at \[0\]"),
        ([1] * (MAX_CONTEXT + 1), {}, {}, "prompt has 33 tokens, and the context of toy holds 32"),
        ([1] * MAX_CONTEXT, {"max_tokens": 2}, {}, "fills the context"),
        ([1], {}, {"num_samples": 0}, "num_samples is 0; it must be 1 to 1024"),
        ([1], {}, {"num_samples": 1025}, "num_samples is 1025"),
        ([1], {}, {"topk_prompt_logprobs": -1}, "topk_prompt_logprobs is -1; it must be 0 to 11"),
        ([1], {}, {"topk_sample_logprobs": 12}, "topk_sample_logprobs is 12; it must be 0 to 11"),
        ([1], {"max_tokens": 11}, {"topk_sample_logprobs": 10}, "may come to 110 over all"),
        ([1] * 11, {}, {"prompt_alt_tokens_k": 10}, "may come to 110 over all"),
        ([1] * 11, {}, {"target_prompt_logprobs": ids([[1] * 11] * 10)}, "may come to 110 over all"),
        ([1], {}, {"prompt_alt_tokens_k": -1}, "prompt_alt_tokens_k is -1; it must be 0 to 50"),
        ([1], {}, {"prompt_alt_tokens_k": 51}, "prompt_alt_tokens_k is 51; it must be 0 to 50"),
        ([1, 2], {}, {"target_prompt_logprobs": ids([1])}, r"has shape \(1,\); it must be \(1, K\)"),
        ([1, 2], {}, {"target_prompt_logprobs": ids([[1], [1]])}, r"has shape \(2, 1\); it must be \(1, K\)"),
        ([1, 2], {}, {"target_prompt_logprobs": TensorData([[1.0]])}, "is float32; token ids are int64"),
        ([1, 2], {}, {"target_prompt_logprobs": ids([[VOCAB]])}, "has token id 11; toy has ids 0 to 10"),
        ([1, 2], {}, {"target_prompt_logprobs": ids([[1, -2]])}, "has token id -2; .* -1 asks for nothing"),
        ([1, 2], {}, {"target_prompt_logprobs": ids([[-1, -1]])}, "names no token id"),
        ([1], {}, {"target_prompt_logprobs": TensorData([], "int64", [0, 3])}, "names no token id"),
        (
            [1, 2],
            {},
            {"target_prompt_logprobs": ids([[1] * 12])},
            "has 12 ids a row, and there are 11 tokens",
        ),
        ([1], {"stop": [VOCAB]}, {}, "stop has token id 11"),
        ([1], {"stop": ["a", ""]}, {}, "stop has an empty string"),
        ([1], {"stop": ["a"] * 65}, {}, "stop has 65 strings of 65 characters in all"),
        ([1], {"stop": ["a" * 8193]}, {}, "stop has 1 strings of 8193 characters in all"),
        ([1, 2, 3], {}, {"prompt_logprobs_last_n": 2}, "it needs prompt_logprobs"),
        ([1, 2, 3], {}, {"prompt_logprobs_last_n": 3, "prompt_logprobs": True}, "must be 1 to 2"),
    ],
)
def test_a_bad_request_is_refused_with_its_field(
    prompt: list[int], params: dict[str, Any], fields: dict[str, Any], message: str
):
    with pytest.raises(BadRequest, match=message):
        work(prompt, params=params, **fields)
