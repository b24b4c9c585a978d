"""Chunks and datums: lengths, JSON and back, provenance."""

from __future__ import annotations

import numpy as np
import pytest

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


def test_tokens_from_an_array_are_those_from_a_list():
    assert types.ModelInput.from_ints(np.array([1, 2])) == types.ModelInput.from_ints([1, 2])


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
