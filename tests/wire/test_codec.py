"""The binary side of the protocol: what goes in comes out, and the bytes are the documented ones."""

from __future__ import annotations

import contextlib
import math
import struct

import numpy as np
import pytest

from tinkerlite.errors import InvalidInput
from tinkerlite.types import (
    Datum,
    ForwardBackwardOutput,
    ForwardBackwardRequest,
    ImageAssetPointerChunk,
    ImageChunk,
    ModelInput,
    PromptAltTokens,
    PromptProvenanceSpan,
    SampledProvenanceSpan,
    SampledSequence,
    SampleResponse,
    TensorData,
    TopkLogprobs,
)
from tinkerlite.wire import (
    WireError,
    decode_forward_backward_output,
    decode_forward_backward_request,
    decode_sample_response,
    encode_forward_backward_output,
    encode_forward_backward_request,
    encode_sample_response,
    forward_backward_parts,
)
from tinkerlite.wire import messages_pb2 as pb


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, dtype=np.int32)


def floats(*values: float) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)


# ---- sampling ----


def full_response() -> SampleResponse:
    topk = TopkLogprobs(ints(5, 6, 7, 0).reshape(2, 2), floats(-0.1, -2, -0.3, -99999.0).reshape(2, 2))
    return SampleResponse(
        sequences=[
            SampledSequence("stop", ints(5, 7), floats(-0.1, -0.3), topk),
            SampledSequence("length", ints(9)),
        ],
        prompt_logprobs_np=floats(math.nan, -1.5),
        topk_prompt_logprobs_np=TopkLogprobs(
            ints(0, 0, 4, 3).reshape(2, 2), floats(-99999, -99999, -0.5, -1).reshape(2, 2)
        ),
        target_prompt_logprobs=TensorData(floats(-1, -2).reshape(1, 2)),
        prompt_alt_tokens=PromptAltTokens(TensorData([[8]]), TensorData([[-3.0]])),
        prompt_cache_hit_tokens=3,
    )


def test_a_sample_response_comes_out_as_it_went_in():
    decoded = decode_sample_response(encode_sample_response(full_response()), ["a", "b"])
    first, second = decoded.sequences
    assert (first.tokens, first.stop_reason, first.sequence_id) == ([5, 7], "stop", "a")
    assert first.logprobs == pytest.approx([-0.1, -0.3])
    assert (second.tokens, second.stop_reason, second.sequence_id) == ([9], "length", "b")
    assert second.logprobs is None
    assert decoded.prompt_cache_hit_tokens == 3
    assert decoded.target_prompt_logprobs == TensorData([[-1.0, -2.0]])
    assert decoded.prompt_alt_tokens == PromptAltTokens(TensorData([[8]]), TensorData([[-3.0]]))


def test_missing_prompt_logprobs_are_nan_on_the_wire_and_none_to_the_user():
    message = pb.SampleResponse.FromString(encode_sample_response(full_response()))
    assert struct.unpack("<2f", message.prompt_logprobs)[1] == -1.5
    assert decode_sample_response(message.SerializeToString()).prompt_logprobs == [None, -1.5]


def test_unused_topk_slots_are_left_out_and_empty_rows_are_none():
    decoded = decode_sample_response(encode_sample_response(full_response()))
    assert decoded.topk_prompt_logprobs == [None, [(4, -0.5), (3, -1.0)]]
    topk = decoded.sequences[0].topk_logprobs
    assert topk is not None
    assert [[token for token, _ in row or ()] for row in topk] == [[5, 6], [7]]


def test_what_was_not_asked_for_is_none():
    decoded = decode_sample_response(encode_sample_response(SampleResponse([])))
    assert decoded.sequences == []
    assert decoded.prompt_logprobs is None
    assert decoded.topk_prompt_logprobs is None
    assert decoded.target_prompt_logprobs is None
    assert decoded.prompt_alt_tokens is None


def test_a_completion_of_no_tokens_has_no_logprobs_only_where_none_were_sent():
    for sent in (None, np.zeros(0, np.float32)):
        empty = SampledSequence(stop_reason="stop", tokens_np=np.zeros(0, np.int32), logprobs_np=sent)
        [read] = decode_sample_response(encode_sample_response(SampleResponse(sequences=[empty]))).sequences
        assert (read.tokens, read.logprobs) == ([], None if sent is None else [])


def test_the_bytes_of_a_sample_are_the_documented_ones():
    response = SampleResponse([SampledSequence("length", ints(258), floats(-0.5))])
    # field 1 (sequence): 1 = stop reason LENGTH, 2 = int32 little-endian, 3 = float32 little-endian
    sequence = b"\x08\x01" + b"\x12\x04\x02\x01\x00\x00" + b"\x1a\x04\x00\x00\x00\xbf"
    assert encode_sample_response(response) == b"\x0a" + bytes([len(sequence)]) + sequence


# ---- requests ----


def request(data: list[Datum], **fields: object) -> ForwardBackwardRequest:
    return ForwardBackwardRequest(model_id="s:train:0", seq_id=7, data=data, loss_fn="ppo", **fields)  # type: ignore[arg-type]


def through(sent: ForwardBackwardRequest) -> ForwardBackwardRequest:
    return decode_forward_backward_request(encode_forward_backward_request(sent))


def test_a_request_comes_out_as_it_went_in():
    image = ImageChunk(data=b"\x89PNG", format="png", expected_tokens=4)
    sent = request(
        [
            Datum(
                ModelInput.from_ints([1, 2]).append(image),
                {"target_tokens": [2, 3], "advantages": [0.5, -0.25]},
            ),
            Datum(ModelInput.from_ints([4]), {"target_tokens": [[5, 6]], "weights": [[0.5, 0.5]]}),
        ],
        loss_fn_config={"clip_low_threshold": 0.8, "mode": "mean"},
        forward_only=True,
    )
    assert through(sent) == sent


def test_sparse_tensors_stay_sparse():
    sparse = TensorData([3, 4], "int64", [2, 5], [0, 1, 2], [1, 4])
    [datum] = through(request([Datum(ModelInput.from_ints([1, 2]), {"target_tokens": sparse})])).data
    decoded = datum.loss_fn_inputs["target_tokens"]
    assert decoded.is_sparse
    assert decoded.tolist() == [[0, 3, 0, 0, 0], [0, 0, 0, 0, 4]]


def test_numbers_among_the_options_go_into_the_older_map_as_well():
    sent = request([], loss_fn_config={"beta": 0.5, "mode": "mean"})
    message = pb.ForwardBackwardRequest.FromString(encode_forward_backward_request(sent))
    assert dict(message.loss_fn_config) == {"beta": 0.5}
    assert message.loss_fn_config_v2["mode"].text == "mean"


def test_requests_of_older_clients_have_only_that_map():
    message = pb.ForwardBackwardRequest(model_id="s:train:0", seq_id=1, loss_fn_config={"beta": 0.5})
    assert decode_forward_backward_request(message.SerializeToString()).loss_fn_config == {"beta": 0.5}


def test_a_request_without_a_number_can_be_given_one_by_writing_it_behind():
    datum = Datum(ModelInput.from_ints([1]), {"target_tokens": [2]})
    unnumbered = ForwardBackwardRequest(model_id="m", seq_id=0, data=[datum], loss_fn="ppo")
    number = ForwardBackwardRequest(model_id="", seq_id=9, data=[], loss_fn="")
    joined = encode_forward_backward_request(unnumbered) + encode_forward_backward_request(number)
    decoded = decode_forward_backward_request(joined)
    assert (decoded.model_id, decoded.seq_id, decoded.loss_fn, decoded.data) == ("m", 9, "ppo", [datum])


def test_a_body_in_parts_reads_as_one_message_of_all_its_datums():
    """The parts are written datum by datum; protobuf itself writes the whole, to the same effect."""
    data = [Datum(ModelInput.from_ints([i, i + 1]), {"target_tokens": [i + 1, i]}) for i in range(3)]
    body = encode_forward_backward_request(request(data))
    assert body == b"".join(forward_backward_parts(request(data)))
    whole = pb.ForwardBackwardRequest()
    whole.ParseFromString(body)
    again = pb.ForwardBackwardRequest()
    again.ParseFromString(whole.SerializeToString())
    assert again == whole
    assert len(whole.data) == 3
    assert decode_forward_backward_request(whole.SerializeToString()).data == data


@pytest.mark.parametrize("tokens", [[-1], [2**31]])
def test_token_ids_that_do_not_fit_are_refused_with_their_place(tokens: list[int]):
    with pytest.raises(InvalidInput, match=r"data\[0\]\.model_input\.chunks\[0\]: token 0"):
        encode_forward_backward_request(request([Datum(ModelInput.from_ints(tokens))]))


def test_where_the_tokens_of_a_datum_come_from_is_sent_with_it():
    given = PromptProvenanceSpan(sequence_id="a", length=1)
    drawn = SampledProvenanceSpan(sequence_id="a", offset=3, length=2)
    datum = Datum(ModelInput.from_ints([1, 2, 3]), {"target_tokens": [2, 3, 4]})
    message = pb.ForwardBackwardRequest()
    message.ParseFromString(
        encode_forward_backward_request(request([datum.with_provenance([given, drawn], [drawn, given])]))
    )
    [sent] = message.data
    assert [span.WhichOneof("span") for span in sent.model_input_spans] == ["prompt_tokens", "sampled_tokens"]
    run = sent.loss_fn_input_spans[0].sampled_tokens
    assert (run.sequence_id, run.offset, run.length) == ("a", 3, 2)


def test_a_pointer_to_an_image_cannot_be_trained_on():
    pointer = ImageAssetPointerChunk(location="s3://picture", format="png", expected_tokens=1)
    with pytest.raises(WireError, match="points to an image"):
        encode_forward_backward_request(
            request([Datum(ModelInput(chunks=[pointer]), {"target_tokens": [1]})])
        )


# ---- results ----


def test_an_output_comes_out_as_it_went_in_though_datums_differ_in_length():
    outputs = [
        {"logprobs": TensorData([-1.0, -2.0]), "elementwise_loss": TensorData([1.0, 2.0])},
        {"logprobs": TensorData([-3.0]), "elementwise_loss": TensorData([3.0])},
    ]
    sent = ForwardBackwardOutput("ArrayRecord", outputs, {"loss:sum": 6.0})
    assert decode_forward_backward_output(encode_forward_backward_output(sent)) == sent


def test_datums_of_other_trailing_shapes_are_in_records_of_their_own():
    outputs = [
        {"logprobs": TensorData([-1.0])},
        {"logprobs": TensorData([[-1.0, -2.0]])},
        {"logprobs": TensorData([[-3.0, -4.0], [-5.0, -6.0]])},
    ]
    encoded = encode_forward_backward_output(ForwardBackwardOutput("ArrayRecord", outputs))
    records = pb.ForwardBackwardOutput.FromString(encoded).loss_fn_outputs
    assert [record.num_datums for record in records] == [1, 2]
    assert decode_forward_backward_output(encoded).loss_fn_outputs == outputs


def test_the_layout_of_an_output_is_the_documented_one():
    outputs = [{"logprobs": TensorData([-1.0, -2.0])}, {"logprobs": TensorData([-3.0])}]
    encoded = encode_forward_backward_output(ForwardBackwardOutput("ArrayRecord", outputs))
    field = pb.ForwardBackwardOutput.FromString(encoded).loss_fn_outputs[0].fields["logprobs"]
    assert struct.unpack("<3f", field.data) == (-1.0, -2.0, -3.0)
    assert struct.unpack("<3q", field.offsets) == (0, 8, 12), "bytes, not elements"


def test_bfloat16_and_int32_are_widened():
    message = pb.ForwardBackwardOutput()
    record = message.loss_fn_outputs.add(num_datums=1)
    record.fields["half"].CopyFrom(
        pb.BatchedTensor(
            data=struct.pack("<2H", 0x3F80, 0xC000), offsets=struct.pack("<2q", 0, 4), dtype=pb.DTYPE_BFLOAT16
        )
    )
    record.fields["count"].CopyFrom(
        pb.BatchedTensor(data=struct.pack("<i", -7), offsets=struct.pack("<2q", 0, 4), dtype=pb.DTYPE_INT32)
    )
    [output] = decode_forward_backward_output(message.SerializeToString()).loss_fn_outputs
    assert (output["half"].data, output["count"].data) == ([1.0, -2.0], [-7])


# ---- bytes that contradict themselves ----


def tensor(**fields: object) -> bytes:
    message = pb.ForwardBackwardRequest()
    message.data.add().loss_fn_inputs["weights"].CopyFrom(pb.Tensor(**fields))  # type: ignore[arg-type]
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"\xff\xff", "not a ForwardBackwardRequest"),
        (tensor(dense=b"123", dtype=pb.DTYPE_FLOAT32, shape=[1]), "not a whole number"),
        (tensor(dense=b"1234", dtype=pb.DTYPE_FLOAT32, shape=[2]), "do not fill shape"),
        (tensor(dense=b"1234", dtype=pb.DTYPE_FLOAT32, shape=[-1]), "do not fill shape"),
        (tensor(dense=b"1234"), "dtype 0"),
        (
            tensor(
                sparse_csr=pb.SparseCsr(
                    values=b"1234", crow_indices=struct.pack("<2q", 0, 1), col_indices=struct.pack("<q", 9)
                ),
                dtype=pb.DTYPE_FLOAT32,
                shape=[1, 2],
            ),
            "column indices",
        ),
    ],
)
def test_a_request_that_contradicts_itself_is_refused_by_field(body: bytes, complaint: str):
    with pytest.raises(WireError, match=complaint):
        decode_forward_backward_request(body)


@pytest.mark.parametrize(
    ("offsets", "complaint"),
    [((0, 8), "offsets"), ((0, 3, 8), "whole number"), ((0, 9, 8), "fall"), ((4, 4, 8), "offsets")],
)
def test_offsets_that_do_not_cut_the_data_are_refused(offsets: tuple[int, ...], complaint: str):
    message = pb.ForwardBackwardOutput()
    record = message.loss_fn_outputs.add(num_datums=2)
    record.fields["logprobs"].CopyFrom(
        pb.BatchedTensor(
            data=bytes(8), offsets=struct.pack(f"<{len(offsets)}q", *offsets), dtype=pb.DTYPE_FLOAT32
        )
    )
    with pytest.raises(WireError, match=complaint):
        decode_forward_backward_output(message.SerializeToString())


def test_as_many_logprobs_as_tokens():
    message = pb.SampleResponse()
    message.sequences.add(tokens=bytes(8), logprobs=bytes(4))
    with pytest.raises(WireError, match=r"sequences\[0\]: 2 tokens but 1 logprobs"):
        decode_sample_response(message.SerializeToString())


def test_topk_rows_have_their_length():
    message = pb.SampleResponse(
        topk_prompt_logprobs=pb.TopkLogprobs(token_ids=bytes(8), logprobs=bytes(8), k=2, length=2)
    )
    with pytest.raises(WireError, match="do not fill"):
        decode_sample_response(message.SerializeToString())


@pytest.mark.parametrize("kind", ["request", "output", "sample"])
def test_damaged_bytes_are_refused_or_read_and_never_anything_else(kind: str):
    datum = Datum(
        ModelInput.from_ints([1, 2]), {"target_tokens": [[2, 3], [4, 5]], "weights": [[1.0, 2.0]] * 2}
    )
    output = ForwardBackwardOutput("ArrayRecord", [{"logprobs": TensorData([-1.0])}], {"loss:sum": 1.0})
    whole, decode = {
        "request": (encode_forward_backward_request(request([datum])), decode_forward_backward_request),
        "output": (encode_forward_backward_output(output), decode_forward_backward_output),
        "sample": (encode_sample_response(full_response()), decode_sample_response),
    }[kind]
    random = np.random.default_rng(0)
    for _ in range(1000):
        damaged = bytearray(whole)
        for place in random.integers(len(damaged), size=2):
            damaged[place] = random.integers(256)
        with contextlib.suppress(WireError):
            decode(bytes(damaged))
