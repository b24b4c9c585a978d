"""Kept conversations: what goes on from one is read from there, and comes out as if read whole."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.server.engine.sampling import (
    make_adapter,
    make_sampler,
    make_work,
    model_of,
    prompt_logprobs_of,
    responses,
    same,
    scoring,
    some_tokens,
)
from tinkerlite_server.engine.attention import KeysValues
from tinkerlite_server.engine.lora import Adapter
from tinkerlite_server.engine.prefix_cache import PrefixCache
from tinkerlite_server.engine.protocols import AdapterConfig
from tinkerlite_server.engine.sampler import LocalSampler

RowsOfPasses = Callable[[LocalSampler], list[int]]

BYTES = 2 * 2 * 3 * 4
"""Of one token: keys and values of one layer with two heads of size three."""


def keys_values(tokens: int) -> KeysValues:
    """Of one layer; every number says which token it is of."""
    numbers = torch.arange(tokens, dtype=torch.float32)[None, :, None].expand(2, -1, 3).clone()
    return KeysValues([numbers], [-numbers])


def keep(cache: PrefixCache, tokens: list[int], prompt: int, adapter: Adapter | None = None) -> bool:
    if not cache.make_room(BYTES * len(tokens)):
        return False
    cache.keep(adapter, np.array(tokens), prompt, keys_values(len(tokens)))
    return True


def found(cache: PrefixCache, prompt: list[int], adapter: Adapter | None = None) -> int:
    past = cache.find(adapter, np.array(prompt))
    return 0 if past is None else past.tokens


def an_adapter() -> Adapter:
    return Adapter(AdapterConfig(rank=1, alpha=1.0, seed=0), {})


# ---- what is found ----


def test_a_prompt_goes_on_from_the_conversation_that_it_has_most_in_common_with():
    cache = PrefixCache(10_000)
    keep(cache, [1, 2, 3, 4], prompt=2)
    keep(cache, [1, 2, 3, 4, 5, 6], prompt=4)
    assert found(cache, [1, 2, 3, 4, 5, 6, 7]) == 6
    assert found(cache, [1, 2, 3, 4, 9]) == 4
    assert found(cache, [1, 2, 3, 9, 9]) == 3  # left the first one within its completion


def test_a_request_that_is_made_again_and_one_within_its_prompt_are_read_whole():
    cache = PrefixCache(10_000)
    keep(cache, [1, 2, 3, 4], prompt=3)
    assert found(cache, [1, 2, 3]) == found(cache, [1, 2]) == found(cache, [1, 2, 9, 9]) == 0


def test_the_last_token_of_a_prompt_is_always_read():
    cache = PrefixCache(10_000)
    keep(cache, [1, 2, 3, 4], prompt=2)
    assert found(cache, [1, 2, 3, 4]) == 3


def test_what_is_found_are_the_keys_and_values_of_those_tokens():
    cache = PrefixCache(10_000)
    keep(cache, [1, 2, 3, 4], prompt=1)
    past = cache.find(None, np.array([1, 2, 3, 9]))
    assert past is not None
    assert past.keys[0][0, :, 0].tolist() == [0, 1, 2]
    assert past.values[0][1, :, 2].tolist() == [0, -1, -2]


def test_adapters_do_not_find_each_others_conversations_and_take_theirs_along():
    cache, one, other = PrefixCache(10_000), an_adapter(), an_adapter()
    keep(cache, [1, 2, 3], 1, one)
    keep(cache, [1, 2], 1)
    assert found(cache, [1, 2, 3, 4], one) == 3
    assert found(cache, [1, 2, 3, 4], other) == 0
    assert found(cache, [1, 2, 3, 4]) == 2
    del one
    gc.collect()
    assert cache.bytes == 2 * BYTES


# ---- what is kept ----


def test_the_conversation_that_was_least_recently_of_use_makes_room():
    cache = PrefixCache(10 * BYTES)
    keep(cache, [1, 2, 3, 4], prompt=1)
    keep(cache, [5, 6, 7, 8], prompt=1)
    assert found(cache, [1, 2, 3, 4, 5]) == 4
    keep(cache, [9, 10, 11], prompt=1)
    assert found(cache, [5, 6, 7, 8, 9]) == 0
    assert found(cache, [1, 2, 3, 4, 5]) == 4
    assert found(cache, [9, 10, 11, 12]) == 3
    assert cache.bytes == 7 * BYTES


def test_one_that_never_fits_is_not_kept_and_drives_no_other_out():
    cache = PrefixCache(4 * BYTES)
    assert keep(cache, [1, 2, 3], prompt=1)
    assert not keep(cache, [4, 5, 6, 7, 8], prompt=1)
    assert found(cache, [1, 2, 3, 4]) == 3
    assert not keep(PrefixCache(0), [1], prompt=1)


def test_the_same_conversation_is_kept_once_and_as_far_as_it_came():
    cache = PrefixCache(10_000)
    for tokens in ([1, 2, 3], [1, 2, 3], [1, 2, 3, 4]):
        keep(cache, tokens, prompt=2)
    assert cache.bytes == 4 * BYTES
    keep(cache, [1, 2, 5], prompt=2)
    assert cache.bytes == 7 * BYTES


# ---- conversations with a model ----


def a_conversation(
    sampler: LocalSampler, folder: Path, turns: int = 3, **settings: Any
) -> list[tuple[np.ndarray, Any]]:
    """(prompt, response) of every turn: what was said, and a few more tokens from the user."""
    prompt, said = some_tokens(20), []
    for turn in range(turns):
        work = make_work(folder, prompt, max_tokens=9 + turn, seed=turn, **settings)
        [response] = responses(sampler, work)
        said.append((prompt, response))
        prompt = np.concatenate([prompt, response.sequences[0].tokens, some_tokens(7, seed=turn + 1)])
    return said


def test_a_turn_reads_only_what_is_new(folder: Path, rows_of_passes: RowsOfPasses):
    sampler = make_sampler(folder)
    rows = rows_of_passes(sampler)
    a_conversation(sampler, folder)
    # The prompt, then what followed the first of all tokens drawn; the last of these had not been read.
    assert rows == [20, *[1] * 8, 1 + 7, *[1] * 9, 1 + 7, *[1] * 10]


@pytest.mark.parametrize("adapted", [False, True])
def test_a_turn_that_goes_on_equals_one_that_is_read_whole(any_folder: Path, adapted: bool):
    samplers = [make_sampler(any_folder), make_sampler(any_folder, max_prefix_bytes=0)]
    settings: dict[str, Any] = {}
    if adapted:
        settings = {"adapter_id": "a"}
        for sampler in samplers:
            sampler.add_adapter("a", str(any_folder), make_adapter(model_of(sampler, any_folder), seed=1))
    kept, whole = (a_conversation(sampler, any_folder, **settings) for sampler in samplers)
    for (_, one), (_, other) in zip(kept, whole, strict=True):
        same(one, other)


def test_conversations_that_go_on_together_equal_each_alone(folder: Path, rows_of_passes: RowsOfPasses):
    sampler = make_sampler(folder)
    first = [make_work(folder, some_tokens(12 + i, seed=i), key=str(i), seed=i) for i in range(4)]
    second = [
        make_work(
            folder,
            np.concatenate([work.prompt, response.sequences[0].tokens, some_tokens(5 + i, seed=9)]),
            key=work.key,
            num_samples=1 + i % 2,
        )
        for i, (work, response) in enumerate(zip(first, responses(sampler, *first), strict=True))
    ]
    second.append(make_work(folder, some_tokens(30, seed=7), key="new"))
    rows = rows_of_passes(sampler)
    together = responses(sampler, *second)
    assert rows[0] == 4 + (5 + 6 + 7 + 8) + 30
    for work, response in zip(second, together, strict=True):
        same(response, responses(make_sampler(folder), work)[0])


def test_what_is_asked_about_a_prompt_is_answered_from_rows_that_are_read(folder: Path):
    sampler = make_sampler(folder)
    [(prompt, response)] = a_conversation(sampler, folder, turns=1)
    longer = np.concatenate([prompt, response.sequences[0].tokens, some_tokens(10)])
    for asked in (
        {},
        {"prompt_logprobs_last_n": 10},
        {"prompt_logprobs_last_n": 25},
        {"topk_prompt_logprobs": 3, "prompt_logprobs_last_n": 4},
        {"prompt_alt_tokens_k": 2, "prompt_seed": 1},
    ):
        work = scoring(folder, longer, **asked)
        [one], [other] = responses(sampler, work), responses(make_sampler(folder), work)
        np.testing.assert_allclose(prompt_logprobs_of(one), prompt_logprobs_of(other), atol=1e-5)
        if one.topk_prompt_logprobs_np is not None:
            assert other.topk_prompt_logprobs_np is not None
            np.testing.assert_array_equal(
                one.topk_prompt_logprobs_np.token_ids, other.topk_prompt_logprobs_np.token_ids
            )
        if one.prompt_alt_tokens is not None:
            assert other.prompt_alt_tokens is not None
            assert one.prompt_alt_tokens.tokens.tolist() == other.prompt_alt_tokens.tokens.tolist()


def test_a_request_made_again_has_the_same_logprobs_to_the_last_bit_in_bfloat16(folder: Path):
    sampler = make_sampler(folder, dtype="bfloat16")
    once, again = a_conversation(sampler, folder), a_conversation(sampler, folder)
    for (_, one), (_, other) in zip(once, again, strict=True):
        assert one.sequences[0].tokens == other.sequences[0].tokens
        assert one.sequences[0].logprobs == other.sequences[0].logprobs


def test_requests_for_several_samples_keep_nothing(folder: Path):
    sampler = make_sampler(folder)
    responses(sampler, make_work(folder, some_tokens(20), num_samples=3))
    [cache] = sampler._prefixes.values()
    assert cache.bytes == 0
