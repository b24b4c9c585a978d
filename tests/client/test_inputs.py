"""Chunks and datums: lengths, JSON and back, provenance."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tinkerlite import types
from tinkerlite.errors import InvalidDatum, InvalidInput
from tinkerlite.json_form import prompt_to_json

AUDIO = b"\x02\x02\xac\x02\x05" + bytes(8)  # dtype 2, two dimensions: 300 (a varint of two bytes) and 5


@pytest.mark.parametrize(
    ("chunk", "length"),
    [
        (types.EncodedTextChunk(tokens=[4, 5]), 2),
        (types.ImageChunk(data=b"\x89PNG", format="png", expected_tokens=7), 7),
        (types.ImageAssetPointerChunk(location="s3://picture", format="jpeg", expected_tokens=9), 9),
        (types.DmelChunk(dmel=AUDIO), 300),
        (types.DmelChunk(dmel=b"\xfe" + AUDIO), 300),
    ],
)
def test_every_kind_of_chunk_knows_its_length_and_survives_json(chunk: types.ModelInputChunk, length: int):
    assert chunk.length == length
    prompt = types.ModelInput(chunks=[chunk])
    assert types.ModelInput.model_validate(prompt_to_json(prompt)) == prompt
    assert types.ModelInput.model_validate_json(prompt.model_dump_json()) == prompt


@pytest.mark.parametrize("bad", [b"", b"\x02", b"\x02\x00", b"\x02\x01\xff"])
def test_audio_without_a_header_has_no_length(bad: bytes):
    with pytest.raises(InvalidInput, match="header"):
        _ = types.DmelChunk(dmel=bad).length


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16, bool, float])
def test_tokens_from_an_array_are_those_from_a_list(dtype: type):
    of_list, of_array = (types.ModelInput.from_ints(each) for each in ([1, 0, 1], np.array([1, 0, 1], dtype)))
    assert of_array == of_list
    assert of_list == of_array
    assert of_array.to_ints() == [1, 0, 1]
    np.testing.assert_array_equal(of_array.to_numpy(), [1, 0, 1])
    assert prompt_to_json(of_array) == prompt_to_json(of_list)
    assert of_array.model_dump_json() == of_list.model_dump_json()
    assert types.ModelInput.model_validate(of_array.model_dump()) == of_list
    assert pickle.loads(pickle.dumps(of_array)) == copy.deepcopy(of_array) == of_list
    assert repr(of_array) == repr(of_list)


def test_tokens_of_an_array_read_as_a_list_would():
    [chunk] = types.ModelInput.from_ints(np.arange(5)).chunks
    assert isinstance(chunk, types.EncodedTextChunk)
    tokens = chunk.tokens
    assert tokens == [0, 1, 2, 3, 4]
    assert tokens != [0, 1, 2, 3]
    assert list(tokens) == tokens[:]
    assert (tokens[-1], tokens[1:3], len(tokens), 3 in tokens, tokens.index(2)) == (4, [1, 2], 5, True, 2)
    assert [9, *tokens] == [9, *tokens]
    assert [*tokens, 9] == [*tokens, 9]
    assert all(type(token) is int for token in (*tokens, tokens[0]))
    assert json.loads(json.dumps(tokens[:])) == tokens
    with pytest.raises(TypeError):
        tokens[0] = 1  # type: ignore[index]


@pytest.mark.parametrize("ids", [[3, 1], (3, 1), [np.int64(3), True], [3.0, 1], np.array([3, 1])])
def test_whatever_holds_whole_numbers_makes_an_input(ids: Any):
    prompt = types.ModelInput.from_ints(ids)
    assert [(token, type(token)) for token in prompt.to_ints()] == [(3, int), (1, int)]
    assert prompt == types.ModelInput(chunks=[types.EncodedTextChunk(tokens=[3, 1])])


@pytest.mark.parametrize("bad", [[1.5], ["a"], ["12"], [[1, 2]], [None], "12"])
def test_what_holds_anything_else_is_refused(bad: Any):
    with pytest.raises(ValidationError):
        types.ModelInput.from_ints(bad)


def test_what_happens_to_a_list_later_does_not_reach_the_input_made_of_it():
    ids = [1, 2, 3]
    prompt = types.ModelInput.from_ints(ids)
    ids[0] = 9
    assert prompt.to_ints() == [1, 2, 3]


def test_what_happens_to_an_array_later_does_not_reach_the_input_made_of_it():
    array = np.array([1, 2, 3])
    prompt = types.ModelInput.from_ints(array)
    array[0] = prompt.to_numpy()[1] = 9
    assert prompt.to_ints() == [1, 2, 3]


@pytest.mark.parametrize("bad", [np.array([1.5]), np.array([[1, 2]]), np.array(["a"])])
def test_an_array_that_holds_no_token_ids_is_refused(bad: np.ndarray):
    with pytest.raises(ValidationError):
        types.ModelInput.from_ints(bad)


@pytest.mark.parametrize("tokens", [[2**70], np.array([2**64 - 1], np.uint64)])
def test_a_number_beyond_all_ids_is_named(tokens: Any):
    with pytest.raises(InvalidInput, match=r"\d{20} is no token id"):
        types.ModelInput.from_ints(tokens).to_numpy()


def test_spans_that_do_not_cover_the_tokens_are_refused():
    datum = types.Datum(types.ModelInput.from_ints([1, 2, 3]), {"target_tokens": [2, 3, 4]})
    run = types.SampledProvenanceSpan(sequence_id="a", length=3)
    short = types.SampledProvenanceSpan(sequence_id="a", length=2)
    assert datum.with_provenance([run], [run]).model_input_spans == [run]
    with pytest.raises(InvalidDatum, match="cover 2 positions; it has 3"):
        datum.with_provenance([run], [short])
    with pytest.raises(InvalidDatum, match="or for neither"):
        types.Datum(datum.model_input, {}, model_input_spans=[run])


@pytest.mark.parametrize("given", [{"sequence_id": "", "length": 1}, {"sequence_id": "a", "length": -1}])
def test_a_span_names_a_sequence_and_has_a_length(given: dict[str, object]):
    with pytest.raises(InvalidDatum):
        types.PromptProvenanceSpan(**given)  # type: ignore[arg-type]


def test_a_torch_matrix_of_targets_becomes_csr_where_that_is_smaller():
    torch = pytest.importorskip("torch")
    sparse = torch.zeros(6, 8, dtype=torch.int64)
    sparse[2, 3] = 5
    datum = types.Datum(
        types.ModelInput.from_ints(range(6)), {"target_tokens": sparse, "weights": torch.ones(6, 8)}
    )
    targets = datum.loss_fn_inputs["target_tokens"]
    assert targets.sparse_crow_indices == [0, 0, 0, 1, 1, 1, 1]
    assert targets.sparse_col_indices == [3]
    assert targets.tolist() == sparse.tolist()
    assert not datum.loss_fn_inputs["weights"].is_sparse
