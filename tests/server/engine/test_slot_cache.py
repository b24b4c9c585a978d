"""The slot cache: it grows as needed, within its budget, and keeps what it holds."""

from pathlib import Path

import torch

from tests.server.engine.sampling import make_sampler, model_of
from tinkerlite_server.engine.attention import KeysValues
from tinkerlite_server.engine.slot_cache import SlotCache


def test_the_cache_grows_by_doubling_and_keeps_what_it_holds(folder: Path):
    model = model_of(make_sampler(folder), folder)
    cache = SlotCache(model, max_slots=6, max_bytes=2**30)
    cache.reserve(1, 10)
    assert (cache.slots, cache.capacity) == (1, 64)
    keys = [torch.full((2, 10, 16), float(layer + 1)) for layer in range(2)]
    cache.write_prompt(0, 1, KeysValues(keys, [-each for each in keys]))
    cache.reserve(2, 65)
    assert (cache.slots, cache.capacity) == (2, 128)
    cache.reserve(5, 65)
    assert (cache.slots, cache.capacity) == (5, 128)
    cache.reserve(6, 130)
    assert (cache.slots, cache.capacity) == (6, 256)
    assert (cache.keys[1][0, :, :10] == 2).all()
    assert (cache.values[0][0, :, :10] == -1).all()
    read = cache.read(0, 10)
    assert (read.tokens, read.bytes) == (10, cache.bytes_of(10))
    assert (read.keys[1] == 2).all()
    assert not cache.keys[0][0, :, 10:].any()
    assert not cache.values[1][1:].any()


def test_the_cache_does_not_double_beyond_its_budget(folder: Path):
    model = model_of(make_sampler(folder), folder)
    slot_bytes = 64 * 512
    cache = SlotCache(model, max_slots=64, max_bytes=6 * slot_bytes)
    assert cache.most_samples(64) == 6
    assert cache.most_samples(65) == 3
    # A sample too large for any budget still runs, by itself.
    assert cache.most_samples(10_000) == 1
    cache.reserve(4, 64)
    cache.reserve(5, 64)
    assert (cache.slots, cache.capacity) == (5, 64)
    cache.reserve(2, 130)
    assert (cache.slots, cache.capacity) == (2, 192)
