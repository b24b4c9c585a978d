"""What each loss needs of a datum, and how the complaint reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tinkerlite.errors import InvalidDatum, InvalidInput, InvalidRequest
from tinkerlite.losses import check_data, check_prompt
from tinkerlite.types import Datum, ImageChunk, ModelInput, TensorData

POLICY = {"target_tokens": [2, 3], "logprobs": [-1.0, -2.0], "advantages": [0.5, 0.5]}


@pytest.mark.parametrize("wrap", [TensorData.from_torch, TensorData.from_torch_sparse])
def test_what_comes_from_torch_is_a_copy(wrap: Callable[[torch.Tensor], TensorData]):
    buffer = torch.tensor([[1.0, 2.0]])
    copied = wrap(buffer)
    buffer.zero_()
    assert copied.tolist() == [[1.0, 2.0]]


def datum(tokens: list[int] | None = None, **inputs: Any) -> Datum:
    return Datum(ModelInput.from_ints([1, 2] if tokens is None else tokens), inputs)


@pytest.mark.parametrize(
    ("loss_fn", "inputs"),
    [
        ("cross_entropy", {"target_tokens": [2, 3]}),
        ("cross_entropy", {"target_tokens": [2, 3], "weights": [0.0, -1.0]}),
        ("cross_entropy", {"target_tokens": [[2, 3], [4, 5]], "weights": [[1.0, 0.0], [0.5, 0.5]]}),
        ("importance_sampling", POLICY),
        ("ppo", POLICY),
        ("ppo", {**POLICY, "clip_low_threshold": [0.8, 0.8]}),
        ("cispo", POLICY),
        ("dro", POLICY),
        ("gspo", POLICY),
        ("gspo", {**POLICY, "sequence_ratio_mask": [0.0, 1.0]}),
        ("a_loss_of_the_servers_own", {"anything": [1.0]}),
    ],
)
def test_what_a_loss_takes(loss_fn: str, inputs: dict[str, Any]):
    check_data([datum(**inputs)], loss_fn)


def test_sparse_targets_may_have_dense_weights():
    targets = TensorData(np.array([[2, 0], [0, 3]]), "int64").to_csr()
    check_data([datum(target_tokens=targets, weights=[[1.0, 0.0], [0.0, 1.0]])], "cross_entropy")


@pytest.mark.parametrize(
    ("loss_fn", "inputs", "complaint"),
    [
        ("cross_entropy", {"weights": [1.0, 1.0]}, "lacks 'target_tokens', which cross_entropy needs"),
        ("importance_sampling", {"target_tokens": [2, 3]}, "lacks 'advantages'"),
        (
            "cross_entropy",
            {"target_tokens": [2, 3], "weight": [1, 1]},
            "['weight'] means nothing to cross_entropy",
        ),
        ("ppo", {**POLICY, "mask": [1.0, 1.0]}, "['mask'] means nothing to ppo"),
        (
            "cross_entropy",
            {"target_tokens": [2]},
            "['target_tokens'] has length 1, and model_input has 2 tokens",
        ),
        ("ppo", {**POLICY, "target_tokens": [[2], [3]]}, "has shape [2, 1]; ppo takes (N,)"),
        ("ppo", {**POLICY, "advantages": [0.5]}, "['advantages'] has shape [1], and target_tokens has [2]"),
        (
            "ppo",
            {**POLICY, "advantages": [0.5, math.nan]},
            "['advantages']: value 1 is nan; it must be finite",
        ),
        ("ppo", {**POLICY, "logprobs": [-math.inf, 0.0]}, "['logprobs']: value 0 is -inf"),
        (
            "cross_entropy",
            {"target_tokens": [2, -1]},
            "['target_tokens']: value 1 is -1; that is no token id",
        ),
        (
            "cross_entropy",
            {"target_tokens": TensorData([2.0, 3.0], "float32")},
            "is float32; it must be int64",
        ),
        ("ppo", {**POLICY, "advantages": TensorData([1, 2], "int64")}, "is int64; it must be float32"),
    ],
)
def test_a_complaint_names_the_datum_and_the_field(loss_fn: str, inputs: dict[str, Any], complaint: str):
    good = datum(target_tokens=[2, 3]) if loss_fn == "cross_entropy" else datum(**POLICY)
    with pytest.raises(InvalidDatum) as caught:
        check_data([good, datum(**inputs)], loss_fn)
    assert str(caught.value).startswith("data[1].loss_fn_inputs")
    assert complaint in str(caught.value)


def test_an_input_has_tokens():
    with pytest.raises(InvalidDatum, match=r"data\[0\].model_input is empty"):
        check_data([datum([], target_tokens=[1])], "cross_entropy")


def test_an_image_of_unknown_length_leaves_the_lengths_to_the_server():
    seen = ModelInput.from_ints([1]).append(ImageChunk(data=b"", format="png"))
    check_data([Datum(seen, {"target_tokens": [1, 2, 3]})], "cross_entropy")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ([], "data is empty"),
        (datum(), "must be a list of Datum, not Datum"),
        (7, "not int"),
        (["x"], r"data\[0\]"),
    ],
)
def test_data_is_a_list_of_datums(data: Any, complaint: str):
    with pytest.raises(InvalidRequest, match=complaint):
        check_data(data, "cross_entropy")


def test_options_are_finite():
    with pytest.raises(InvalidRequest, match="clip_low_threshold"):
        check_data([datum(**POLICY)], "ppo", {"clip_low_threshold": math.nan})


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [([1, 2], "ModelInput.from_ints"), (ModelInput.empty(), "empty"), (ModelInput.from_ints([-5]), "-5")],
)
def test_a_prompt_is_checked_too(prompt: Any, complaint: str):
    with pytest.raises(InvalidInput, match=complaint):
        check_prompt(prompt)


def test_what_is_no_integer_is_no_token():
    with pytest.raises(ValueError, match="valid integer"):
        ModelInput.from_ints([1.5])  # pyright: ignore[reportArgumentType]
