from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.server.served import datum
from tests.server.toy_engine import MAX_CONTEXT, VOCAB, ToyEngine
from tinkerlite.types import Datum, ForwardBackwardRequest, ImageChunk, ModelInput, TensorData
from tinkerlite_server.engine.losses import LOSSES as ENGINE_LOSSES
from tinkerlite_server.engine.protocols import TrainBatch
from tinkerlite_server.errors import BadRequest
from tinkerlite_server.settings import Limits
from tinkerlite_server.validation import LOSSES, batch_fingerprint, check_name, check_ttl, train_batch

INFO = ToyEngine().catalog["toy"]
POLICY = {"logprobs": [0.0, -1.0, -1.0], "advantages": [0.0, 1.0, 1.0]}


def batch_of(
    data: Sequence[Datum],
    loss_fn: str = "cross_entropy",
    loss_fn_config: dict[str, float | str] | None = None,
    limits: Limits | None = None,
) -> TrainBatch:
    request = ForwardBackwardRequest(
        model_id="run", seq_id=1, data=list(data), loss_fn=loss_fn, loss_fn_config=loss_fn_config or {}
    )
    return train_batch(request, INFO, limits or Limits())


def test_every_loss_that_is_offered_is_one_that_the_engine_has():
    assert set(LOSSES) == set(ENGINE_LOSSES)


def test_a_valid_batch_becomes_arrays_of_one_shape():
    batch = batch_of([datum((1, 2, 3), (2, 3, 4), **POLICY)], "ppo", {"clip_low_threshold": 0.9})
    [example] = batch.examples
    assert example.tokens.tolist() == [1, 2, 3]
    assert example.target_tokens.tolist() == [2, 3, 4]
    assert example.inputs["advantages"].dtype == np.float32
    assert batch.loss_config == {"clip_low_threshold": 0.9}


def test_weights_that_are_left_out_are_ones():
    [example] = batch_of([Datum(ModelInput.from_ints([1, 2]), {"target_tokens": [2, 3]})]).examples
    assert example.inputs["weights"].tolist() == [1.0, 1.0]


def test_negative_weights_are_allowed_since_custom_losses_send_gradients_as_weights():
    [example] = batch_of([datum((1, 2), (2, 3), weights=[-1.0, 0.5])]).examples
    assert example.inputs["weights"].tolist() == [-1.0, 0.5]


def test_cross_entropy_takes_many_targets_a_token_dense_or_sparse():
    targets = TensorData([[2, 3], [3, 0]], "int64")
    weights = TensorData([[0.5, 0.5], [1.0, 0.0]], "float32")
    # Clients decide for each tensor by itself which form is smaller.
    examples = batch_of(
        [
            datum((1, 2), targets, weights=weights),
            datum((1, 2), targets.to_csr(), weights=weights.to_csr()),
            datum((1, 2), targets.to_csr(), weights=weights),
            datum((1, 2), targets, weights=weights.to_csr()),
        ]
    ).examples
    for example in examples:
        assert example.target_tokens.tolist() == [[2, 3], [3, 0]]
        assert example.inputs["weights"].tolist() == [[0.5, 0.5], [1.0, 0.0]]


def test_clip_bounds_may_be_given_for_each_token():
    [example] = batch_of(
        [datum((1, 2, 3), (2, 3, 4), **POLICY, clip_low_threshold=[0.8] * 3)], "ppo"
    ).examples
    assert example.inputs["clip_low_threshold"].tolist() == pytest.approx([0.8] * 3)


NAN, INFINITY = float("nan"), float("inf")
LONG = (1,) * (MAX_CONTEXT + 1)
BAD_DATUMS: list[tuple[str, Datum, str, str]] = [
    ("no tokens", datum((), ()), "cross_entropy", r"data\[1\].model_input is empty"),
    (
        "an id beyond the vocabulary",
        datum((1, VOCAB), (2, 3)),
        "cross_entropy",
        rf"data\[1\].model_input has token id {VOCAB} at \[1\]; toy has ids 0 to {VOCAB - 1}",
    ),
    ("a negative id", datum((1, -1), (2, 3)), "cross_entropy", r"data\[1\].model_input has token id -1 at"),
    (
        "a target beyond the vocabulary",
        datum((1, 2), (2, 99)),
        "cross_entropy",
        r"data\[1\].loss_fn_inputs\['target_tokens'\] has token id 99 at \[1\]",
    ),
    ("too many tokens", datum(LONG, LONG), "cross_entropy", "has 33 tokens, and the context of toy holds 32"),
    (
        "too few targets",
        datum((1, 2, 3), (2, 3)),
        "cross_entropy",
        r"\['target_tokens'\] has shape \(2,\); cross_entropy wants \(3,\) or \(3, K\)",
    ),
    (
        "too few weights",
        datum((1, 2), (2, 3), weights=[1.0]),
        "cross_entropy",
        r"\['weights'\] has shape \(1,\), and target_tokens has \(2,\)",
    ),
    (
        "NaN",
        datum((1, 2), (2, 3), weights=[1.0, NAN]),
        "cross_entropy",
        r"data\[1\].loss_fn_inputs\['weights'\] is nan at \[1\]; it must be finite",
    ),
    (
        "infinity",
        datum((1, 2), (2, 3), logprobs=[-INFINITY, 0.0], advantages=[0.0, 0.0]),
        "importance_sampling",
        r"\['logprobs'\] is -inf at \[0\]",
    ),
    (
        "no advantages",
        datum((1, 2), (2, 3), logprobs=[0.0, 0.0]),
        "importance_sampling",
        r"lacks \['advantages'\], which importance_sampling needs",
    ),
    (
        "an input that the loss does not take",
        datum((1, 2, 3), (2, 3, 4), **POLICY, mask=[1.0] * 3),
        "importance_sampling",
        r"has \['mask'\], which importance_sampling does not take",
    ),
    (
        "a negative bound of one token",
        datum((1, 2, 3), (2, 3, 4), **POLICY, clip_low_threshold=[0.8, -0.2, 0.8]),
        "ppo",
        r"\['clip_low_threshold'\] is -0.2.* at \[1\]; it must be 0 or more",
    ),
    (
        "a negative count",
        datum((1, 2, 3), (2, 3, 4), **POLICY, sequence_ratio_mask=[0.0, 1.0, -1.0]),
        "gspo",
        r"\['sequence_ratio_mask'\] is -1.0 at \[2\]",
    ),
    (
        "bounds of one token that leave nothing between them",
        datum(
            (1, 2, 3),
            (2, 3, 4),
            **POLICY,
            clip_low_threshold=[0.8] * 3,
            clip_high_threshold=[1.2, 1.2, 0.7],
        ),
        "cispo",
        r"data\[1\].loss_fn_inputs: clip_low_threshold is above clip_high_threshold at \[2\]",
    ),
    (
        "many targets where the loss takes one",
        datum((1, 2), [[1, 2], [3, 4]], logprobs=[[0.0] * 2] * 2, advantages=[[0.0] * 2] * 2),
        "importance_sampling",
        r"has shape \(2, 2\); importance_sampling wants \(2,\)",
    ),
    (
        "no targets a token",
        datum((1, 2), TensorData([], "int64", [2, 0]), weights=TensorData([], "float32", [2, 0])),
        "cross_entropy",
        r"has shape \(2, 0\)",
    ),
    (
        "targets that are no integers",
        Datum(ModelInput.from_ints([1]), {"target_tokens": TensorData([2.5], "float32")}),
        "cross_entropy",
        "is float32; token ids are int64",
    ),
    (
        "an image",
        Datum(ModelInput(chunks=[ImageChunk(data=b"x", format="png")]), {"target_tokens": [1]}),
        "cross_entropy",
        r"data\[1\].model_input.chunks\[0\] is of type 'image'; toy reads text alone",
    ),
]


@pytest.mark.parametrize(
    ("bad", "loss_fn", "message"), [case[1:] for case in BAD_DATUMS], ids=[case[0] for case in BAD_DATUMS]
)
def test_a_bad_datum_is_refused_with_its_index_and_field(bad: Datum, loss_fn: str, message: str):
    good = datum() if loss_fn == "cross_entropy" else datum((1, 2, 3), (2, 3, 4), **POLICY)
    with pytest.raises(BadRequest, match=message):
        batch_of([good, bad], loss_fn)


@pytest.mark.parametrize(
    ("loss_fn", "config", "message"),
    [
        ("hinge", {}, "loss_fn 'hinge' is not one of"),
        (
            "stable_reinforce",
            {"kl_coeff": 0.1},
            "objective of stable_reinforce is not .* importance_sampling",
        ),
        ("cross_entropy", {"beta": 0.1}, "'beta'.* is not an option of cross_entropy; it takes none"),
        ("ppo", {"epsilon": 0.2}, r"it takes \['clip_high_threshold', 'clip_low_threshold'\]"),
        ("ppo", {"clip_low_threshold": NAN}, "it must be a number, 0 or more"),
        ("ppo", {"clip_low_threshold": -0.2}, "it must be a number, 0 or more"),
        ("ppo", {"clip_low_threshold": "low"}, "it must be a number, 0 or more"),
        ("ppo", {"clip_low_threshold": 1.2, "clip_high_threshold": 0.8}, "1.2 is above clip_high_threshold"),
    ],
)
def test_an_unknown_loss_or_option_is_refused_by_name(loss_fn: str, config: Any, message: str):
    with pytest.raises(BadRequest, match=message):
        batch_of([datum((1, 2, 3), (2, 3, 4), **POLICY)], loss_fn, config)


def test_a_bound_of_one_token_is_held_against_that_of_the_request():
    data = [datum((1, 2, 3), (2, 3, 4), **POLICY, clip_low_threshold=[0.8, 1.3, 0.8])]
    batch_of(data, "ppo", {"clip_high_threshold": 1.3})
    with pytest.raises(BadRequest, match=r"above clip_high_threshold at \[1\]"):
        batch_of(data, "ppo", {"clip_high_threshold": 1.2})


def test_an_empty_batch_is_refused():
    with pytest.raises(BadRequest, match="data is empty"):
        batch_of([])


def test_a_sparse_tensor_of_a_few_bytes_cannot_claim_all_memory():
    columns = 10**12
    bomb = TensorData([1], "int64", [2, columns], [0, 1, 1], [0])
    with pytest.raises(BadRequest, match=r"data\[0\].loss_fn_inputs unfold to 2000000000002 values"):
        batch_of([datum((1, 2), bomb, weights=[1.0, 1.0])])


def test_more_targets_a_token_than_there_are_tokens_are_refused():
    wide = TensorData([], "int64", [1, VOCAB + 1], [0, 0], [])
    with pytest.raises(BadRequest, match=f"{VOCAB + 1} targets a token"):
        batch_of([datum((1,), wide, weights=[[0.0] * (VOCAB + 1)])])


def test_many_small_sparse_tensors_share_one_budget():
    small = datum((1, 2), (2, 3))
    limits = Limits(max_body_bytes=4 * 4 * 10)  # ten datums of two targets and two weights
    batch_of([small] * 10, limits=limits)
    with pytest.raises(BadRequest, match=r"data\[10\]"):
        batch_of([small] * 11, limits=limits)


@pytest.mark.parametrize("name", ["step-10", "a", "A.b_c-9", "x" * 128])
def test_names_of_plain_characters_are_fine(name: str):
    assert check_name(name, "path") == name


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".", "..", "a b", "é", "x" * 129, "a\n", "tinker://x"])
def test_other_names_are_refused(name: str):
    with pytest.raises(BadRequest, match="path is"):
        check_name(name, "path")


@pytest.mark.parametrize("ttl_seconds", [None, 3600, 315_360_000])
def test_checkpoints_may_live_from_an_hour_to_ten_years_or_for_ever(ttl_seconds: int | None):
    assert check_ttl(ttl_seconds) == ttl_seconds


@pytest.mark.parametrize("ttl_seconds", [-1, 0, 3599, 315_360_001])
def test_other_lifetimes_are_refused(ttl_seconds: int):
    with pytest.raises(BadRequest, match="ttl_seconds is"):
        check_ttl(ttl_seconds)


def test_a_fingerprint_is_of_the_content_and_not_of_its_order():
    one = datum((1, 2, 3), (2, 3, 4), logprobs=[0.0] * 3, advantages=[1.0] * 3)
    other = datum((1, 2, 3), (2, 3, 4), advantages=[1.0] * 3, logprobs=[0.0] * 3)
    swapped = datum((1, 2, 3), (2, 3, 4), logprobs=[1.0] * 3, advantages=[0.0] * 3)
    prints = [batch_fingerprint(batch_of([each], "ppo")) for each in (one, other, swapped)]
    assert prints[0] == prints[1] != prints[2]
