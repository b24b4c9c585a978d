"""Packing: which rows are shared, what attends to what, and that sharing changes no number."""

import numpy as np
import pytest
import torch

from tests.tiny import make_tiny_model
from tinkerlite_server.engine.base_model import BaseModel
from tinkerlite_server.engine.lora import Adapter
from tinkerlite_server.engine.passes import cut_passes
from tinkerlite_server.engine.prompts import choose_prompts
from tinkerlite_server.engine.protocols import AdapterConfig, ModelInfo
from tinkerlite_server.engine.streams import PackedStream, common_prefix, prefix_groups, stream_order

CPU = torch.device("cpu")
PROMPT = np.arange(100, 110)


def sequence(*tail: int, prompt: np.ndarray = PROMPT) -> np.ndarray:
    return np.concatenate([prompt, np.array(tail, dtype=np.int64)])


def groups_of(sequences: list[np.ndarray]) -> list[tuple[list[int], int]]:
    adapters = [None] * len(sequences)
    return prefix_groups(sequences, adapters, stream_order(sequences, adapters))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"), seed=1)
    info = ModelInfo(
        name="tiny",
        arch="llama",
        vocab_size=512,
        max_context=512,
        eos_ids=(2,),
        dtype="float32",
        folder=folder,
        tokenizer_hash="",
    )
    return BaseModel(info, CPU, torch.float32)


def adapter_of(model: BaseModel, seed: int) -> Adapter:
    adapter = Adapter.fresh(AdapterConfig(rank=4, alpha=32.0, seed=seed), model.bank.targets)
    generator = torch.Generator().manual_seed(seed)
    for pair in adapter.pairs.values():
        pair.b.data.normal_(0, 0.05, generator=generator)
    return adapter


def test_common_prefix_counts_equal_tokens_from_the_start():
    assert common_prefix(np.array([1, 2, 3]), np.array([1, 2, 4, 5])) == 2
    assert common_prefix(np.array([1, 2]), np.array([1, 2, 4])) == 2
    assert common_prefix(np.array([7]), np.array([1])) == 0


def test_completions_of_one_prompt_share_it_and_other_prompts_stay_apart():
    other = np.arange(200, 212)
    sequences = [sequence(1), sequence(5, prompt=other), sequence(2, 3), sequence(6, 7, prompt=other)]
    assert groups_of(sequences) == [([0, 2], 10), ([1, 3], 12)]


def test_a_few_common_tokens_are_not_worth_sharing():
    assert groups_of([np.array([1, 2, 3, 4]), np.array([1, 2, 3, 9])]) == [([0], 0), ([1], 0)]


def test_a_short_prefix_does_not_pay_for_attention_among_thousands_of_rows():
    rng = np.random.default_rng(0)
    # Five shared tokens pay for 5 x 2048 masked pairs: with 100 rows of their own, for two sequences.
    long = [np.concatenate([PROMPT[:5], rng.integers(0, 512, 100)]) for _ in range(4)]
    assert groups_of(long) == [([i], 0) for i in stream_order(long, [None] * 4)]
    short = [np.concatenate([PROMPT[:5], rng.integers(0, 512, 10)]) for _ in range(40)]
    assert [(len(members), shared) for members, shared in groups_of(short)] == [(40, 5)]


def test_equal_sequences_share_all_but_their_last_token():
    assert groups_of([PROMPT, PROMPT]) == [([0, 1], 9)]


def test_shared_rows_exist_once_and_every_token_knows_its_row():
    stream = PackedStream([sequence(1), sequence(2, 3)], [None, None], CPU)
    assert stream.input_ids_N.tolist() == [*PROMPT, 1, 2, 3]
    assert stream.position_ids_N.tolist() == [*range(10), 10, 10, 11]
    assert stream.rows[0].tolist() == [*range(10), 10]
    assert stream.rows[1].tolist() == [*range(10), 11, 12]


def test_sequences_of_different_adapters_never_share_rows(model: BaseModel):
    left, right = adapter_of(model, 1), adapter_of(model, 2)
    stream = PackedStream([sequence(1), sequence(2)], [left, right], CPU)
    assert len(stream.input_ids_N) == 22
    assert [a.rows.tolist() for a in stream.adapters if a.rows is not None] == [
        list(range(11)),
        list(range(11, 22)),
    ]


def test_hidden_states_equal_those_of_each_sequence_alone(model: BaseModel):
    rng = np.random.default_rng(0)
    left, right = adapter_of(model, 1), adapter_of(model, 2)
    sequences, adapters = [], []
    for prompt in (PROMPT, np.arange(300, 340)):
        for adapter in (None, left, right):
            for _ in range(3):
                sequences.append(np.concatenate([prompt, rng.integers(0, 512, rng.integers(1, 9))]))
                adapters.append(adapter)
    with torch.inference_mode():
        packed = PackedStream(sequences, adapters, CPU)
        hidden = model.hidden(packed)
        assert len(packed.input_ids_N) < sum(map(len, sequences)) / 2
        for ids, adapter, rows in zip(sequences, adapters, packed.rows, strict=True):
            alone = model.hidden(PackedStream([ids], [adapter], CPU))
            torch.testing.assert_close(hidden[torch.from_numpy(rows)], alone, atol=1e-5, rtol=1e-5)


def test_passes_are_bounded_cover_everything_once_and_keep_groups_together():
    sequences = [sequence(i) for i in range(6)] + [np.arange(400, 430)]
    passes = cut_passes(sequences, [None] * 7, max_tokens=16)
    assert sorted(i for members in passes for i in members) == list(range(7))
    assert passes == [[0, 1, 2, 3, 4, 5], [6]]  # 11 + 5 x 1 rows; the long one alone


def rows_of(sequences: list[np.ndarray], members: list[int]) -> int:
    return len(PackedStream([sequences[i] for i in members], [None] * len(members), CPU).input_ids_N)


@pytest.mark.parametrize(
    ("shared", "most", "passes"), [(100, 512, 2), (460, 972, 2), (600, 1112, 2), (4000, 4512, 2)]
)
def test_a_long_prefix_is_not_computed_for_every_few_of_its_sequences(shared: int, most: int, passes: int):
    """Of 16 with 50 tokens of their own."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, 400, shared)
    sequences = [np.concatenate([prompt, rng.integers(0, 400, 50)]) for _ in range(16)]
    found = cut_passes(sequences, [None] * 16, max_tokens=512)
    assert sorted(i for members in found for i in members) == list(range(16))
    assert max(rows_of(sequences, members) for members in found) <= most
    assert len(found) == passes


def test_long_prefixes_do_not_add_up_in_one_pass():
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 400, 600) for _ in range(6)]
    sequences = [np.concatenate([prompt, rng.integers(0, 400, 10)]) for prompt in prompts for _ in range(4)]
    found = cut_passes(sequences, [None] * 24, max_tokens=512)
    assert [rows_of(sequences, members) for members in found] == [640] * 6
    first = choose_prompts(sequences, [None] * 24, {}, max_tokens=512)
    assert first == [0, 1, 2, 3]


def test_nested_prefixes_do_not_make_a_pass_larger_than_its_limit():
    """Neighbours share more than their group does: what counts is what the pass computes."""
    rng = np.random.default_rng(0)
    outer, inner = rng.integers(0, 400, 150), rng.integers(0, 400, 60)
    sequences = [np.concatenate([outer, rng.integers(0, 400, 20)])]
    sequences += [np.concatenate([outer, inner, rng.integers(0, 400, 20)]) for _ in range(20)]
    found = cut_passes(sequences, [None] * 21, max_tokens=512)
    assert max(rows_of(sequences, members) for members in found) <= 512
