"""Kept conversations: what goes on from one is read from there, and comes out as if read whole."""

import gc
from collections.abc import Callable, Sequence
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
from tinkerlite_server.engine.base_model import BaseModel
from tinkerlite_server.engine.lora import Adapter
from tinkerlite_server.engine.prefix_cache import PrefixCache
from tinkerlite_server.engine.prompts import Prompt, ReadPrompt, read_prompts
from tinkerlite_server.engine.protocols import AdapterConfig
from tinkerlite_server.engine.sampler import LocalSampler
from tinkerlite_server.engine.slot_cache import SlotCache

RowsOfPasses = Callable[[LocalSampler], list[int]]

BYTES = 2 * 2 * 3 * 4
"""Of one token: keys and values of one layer with two heads of size three."""


def keys_values(tokens: int) -> KeysValues:
    """Of one layer; every number says which token it is of."""
    numbers = torch.arange(tokens, dtype=torch.float32)[None, :, None].expand(2, -1, 3).clone()
    return KeysValues([numbers], [-numbers])


def keep(cache: PrefixCache, tokens: np.ndarray, prompt: int, weights: Adapter | None = None) -> bool:
    if not cache.make_room(BYTES * len(tokens)):
        return False
    cache.keep(weights or BARE, tokens, prompt, keys_values(len(tokens)))
    return True


def found(
    cache: PrefixCache, prompt: np.ndarray, weights: Adapter | None = None, most: int | None = None
) -> int:
    past = cache.find(weights or BARE, prompt, len(prompt) - 1 if most is None else most)
    return 0 if past is None else past.tokens


def an_adapter() -> Adapter:
    return Adapter(AdapterConfig(rank=1, alpha=1.0, seed=0), {})


BARE = an_adapter()
"""Stands for the weights of a model without an adapter."""
TEXT = np.arange(100, 400)
OTHER = np.arange(500, 800)


def and_then(tokens: np.ndarray, count: int) -> np.ndarray:
    """The same with so many tokens that nobody has said."""
    return np.concatenate([tokens, np.arange(1000, 1000 + count)])


# ---- what is found ----


def test_a_prompt_goes_on_from_the_conversation_that_it_has_most_in_common_with():
    cache = PrefixCache(10**6)
    keep(cache, TEXT[:40], prompt=20)
    keep(cache, TEXT[:60], prompt=45)
    assert found(cache, and_then(TEXT[:60], 9)) == 60
    assert found(cache, and_then(TEXT[:40], 9)) == 40
    assert found(cache, and_then(TEXT[:30], 9)) == 30  # left the first one within its completion


def test_a_request_that_is_made_again_and_one_within_its_prompt_are_read_whole():
    cache = PrefixCache(10**6)
    keep(cache, TEXT[:60], prompt=50)
    assert found(cache, TEXT[:50]) == found(cache, TEXT[:40]) == found(cache, and_then(TEXT[:49], 9)) == 0


def test_what_is_asked_about_has_to_be_read():
    cache = PrefixCache(10**6)
    keep(cache, TEXT[:60], prompt=20)
    assert found(cache, TEXT[:60]) == 59
    assert found(cache, TEXT[:60], most=40) == 40
    assert found(cache, TEXT[:60], most=0) == 0


def test_a_little_that_is_known_is_not_worth_leaving_the_other_prompts_for():
    cache = PrefixCache(10**6)
    keep(cache, TEXT[:1], prompt=1)  # as a prompt of the beginning of text alone does
    keep(cache, OTHER[:40], prompt=20)
    assert found(cache, TEXT) == 0
    assert found(cache, OTHER[:80]) == 40
    assert found(cache, OTHER[:81]) == 0


def test_a_prompt_is_read_whole_where_its_mask_would_be_large():
    cache = PrefixCache(10**9)
    long = np.arange(20_000)
    keep(cache, long[:19_000], prompt=10)
    assert found(cache, long[:20_000]) == 19_000
    keep(cache, long[:12_000] + 1, prompt=10)
    assert found(cache, long + 1) == 0  # 8,000 rows that look at 20,000 tokens


def test_what_is_found_are_the_keys_and_values_of_those_tokens():
    cache = PrefixCache(10**6)
    keep(cache, TEXT[:40], prompt=1)
    past = cache.find(BARE, and_then(TEXT[:30], 5), 34)
    assert past is not None
    assert past.keys[0][0, :, 0].tolist() == list(range(30))
    assert past.values[0][1, :, 2].tolist() == [-place for place in range(30)]


def test_weights_do_not_find_each_others_conversations_and_take_theirs_along():
    cache, one, other = PrefixCache(10**6), an_adapter(), an_adapter()
    keep(cache, TEXT[:30], 1, one)
    keep(cache, TEXT[:20], 1)
    assert found(cache, TEXT[:40], one) == 30
    assert found(cache, TEXT[:40], other) == 0
    assert found(cache, TEXT[:40]) == 20
    del one
    gc.collect()
    assert cache.bytes == 20 * BYTES


# ---- what is kept ----


def test_the_conversation_that_was_least_recently_of_use_makes_room():
    cache = PrefixCache(100 * BYTES)
    keep(cache, TEXT[:40], prompt=1)
    keep(cache, OTHER[:40], prompt=1)
    assert found(cache, TEXT[:50]) == 40
    keep(cache, OTHER[100:130], prompt=1)
    assert found(cache, OTHER[:50]) == 0
    assert found(cache, TEXT[:50]) == 40
    assert found(cache, OTHER[100:140]) == 30
    assert cache.bytes == 70 * BYTES


def test_one_that_never_fits_is_not_kept_and_drives_no_other_out():
    cache = PrefixCache(40 * BYTES)
    assert keep(cache, TEXT[:30], prompt=1)
    assert not keep(cache, OTHER[:50], prompt=1)
    assert found(cache, TEXT[:40]) == 30
    assert not keep(PrefixCache(0), TEXT[:1], prompt=1)


def test_the_same_conversation_is_kept_once_and_as_far_as_it_came():
    cache = PrefixCache(10**6)
    for length in (30, 30, 40):
        keep(cache, TEXT[:length], prompt=20)
    assert cache.bytes == 40 * BYTES
    keep(cache, and_then(TEXT[:25], 5), prompt=20)
    assert cache.bytes == 70 * BYTES


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
    assert sampler._prefixes.bytes == 0


def test_conversations_are_chosen_for_a_pass_by_what_they_have_to_read(
    folder: Path, rows_of_passes: RowsOfPasses
):
    sampler = make_sampler(folder, max_score_tokens=64)
    first = [make_work(folder, some_tokens(40, seed=i), key=str(i)) for i in range(4)]
    said = responses(sampler, *first)
    second = [
        make_work(
            folder,
            np.concatenate([work.prompt, response.sequences[0].tokens, some_tokens(5, seed=9)]),
            key=work.key,
        )
        for work, response in zip(first, said, strict=True)
    ]
    rows = rows_of_passes(sampler)
    responses(sampler, *second)
    assert rows[0] == 4 * (1 + 5)


def test_a_conversation_that_cannot_be_kept_fails_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def out_of_memory(*_: Any) -> KeysValues:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(SlotCache, "read", out_of_memory)
    sampler = make_sampler(folder)
    works = [make_work(folder, some_tokens(20), key=str(i), max_tokens=3 + i) for i in range(3)]
    responses(sampler, *works)
    assert sampler._prefixes.bytes == 0


def test_a_prompt_whose_pass_fails_is_read_once_more_as_a_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    sampler = make_sampler(folder)
    [(prompt, response)] = a_conversation(sampler, folder, turns=1)
    follow, pasts = read_prompts, list[bool]()

    def fails_with_a_past(model: BaseModel, prompts: Sequence[Prompt], chunk: int) -> list[ReadPrompt]:
        pasts.append(prompts[0].past is not None)
        if prompts[0].past is not None:
            raise RuntimeError("out of memory")
        return follow(model, prompts, chunk)

    monkeypatch.setattr("tinkerlite_server.engine.batcher.read_prompts", fails_with_a_past)
    longer = make_work(folder, np.concatenate([prompt, response.sequences[0].tokens, some_tokens(5)]))
    [one] = responses(sampler, longer)
    assert pasts == [True, False]
    same(one, responses(make_sampler(folder), longer)[0])
