"""Types to protobuf bytes and back; see messages.proto for the fields and their encodings.

Decoding checks everything that the bytes can contradict themselves in (lengths, offsets,
dtypes), and raises WireError with the field's name. Meaning (vocabulary, losses) is checked
by whoever gives it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from tinkerlite.errors import InvalidRequest
from tinkerlite.types import (
    Datum,
    DmelChunk,
    EncodedTextChunk,
    ForwardBackwardOutput,
    ForwardBackwardRequest,
    ImageAssetPointerChunk,
    ImageChunk,
    LossFnOutput,
    ModelInput,
    ModelInputChunk,
    PromptAltTokens,
    PromptProvenanceSpan,
    ProvenanceSpan,
    SampledSequence,
    SampleResponse,
    TensorData,
    TopkLogprobs,
)
from tinkerlite.wire import messages_pb2 as pb

PROTOBUF_CONTENT_TYPE = "application/x-protobuf"

INT32, INT64, FLOAT32 = np.dtype("<i4"), np.dtype("<i8"), np.dtype("<f4")
_INT32_MAX = 2**31 - 1


class WireError(InvalidRequest):
    """Bytes that are not the message they should be; the message names the field."""


# ---- tensors ----


def _array(data: bytes, dtype: np.dtype[Any], field: str) -> NDArray[Any]:
    if len(data) % dtype.itemsize:
        raise WireError(f"{field}: {len(data)} bytes are not a whole number of {dtype.name} values")
    return np.frombuffer(data, dtype=dtype)


def _encode_tensor(tensor: TensorData, message: pb.Tensor) -> None:
    message.dtype = pb.DTYPE_INT64 if tensor.dtype == "int64" else pb.DTYPE_FLOAT32
    message.shape.extend(tensor.shape)
    values = tensor.values.astype(INT64 if tensor.dtype == "int64" else FLOAT32, copy=False)
    if tensor.crow_indices is None or tensor.col_indices is None:
        message.dense = values.tobytes()
    else:
        message.sparse_csr.values = values.tobytes()
        message.sparse_csr.crow_indices = tensor.crow_indices.astype(INT64).tobytes()
        message.sparse_csr.col_indices = tensor.col_indices.astype(INT64).tobytes()


def _values(data: bytes, dtype: int, field: str) -> NDArray[Any]:
    """Stored values, widened to the two dtypes that TensorData has."""
    if dtype == pb.DTYPE_INT64:
        return _array(data, INT64, field)
    if dtype == pb.DTYPE_FLOAT32:
        return _array(data, FLOAT32, field)
    if dtype == pb.DTYPE_INT32:
        return _array(data, INT32, field).astype(np.int64)
    if dtype == pb.DTYPE_BFLOAT16:
        halves = _array(data, np.dtype("<u2"), field).astype(np.uint32)
        return (halves << 16).view(np.float32)
    raise WireError(f"{field}: dtype {dtype} is not one of INT64, INT32, FLOAT32, BFLOAT16")


def _decode_tensor(message: pb.Tensor, field: str) -> TensorData:
    shape = list(message.shape)
    encoding = message.WhichOneof("encoding")
    try:
        if encoding == "sparse_csr":
            csr = message.sparse_csr
            return TensorData(
                _values(csr.values, message.dtype, field),
                shape=shape,
                sparse_crow_indices=_array(csr.crow_indices, INT64, f"{field}.crow_indices"),
                sparse_col_indices=_array(csr.col_indices, INT64, f"{field}.col_indices"),
            )
        values = _values(message.dense, message.dtype, field)
        return TensorData(values, shape=shape or [values.size])
    except WireError:
        raise
    except InvalidRequest as error:
        raise WireError(f"{field}: {error}") from error


def _encode_topk(topk: TopkLogprobs, message: pb.TopkLogprobs) -> None:
    message.length, message.k = topk.token_ids.shape
    message.token_ids = topk.token_ids.astype(INT32, copy=False).tobytes()
    message.logprobs = topk.logprobs.astype(FLOAT32, copy=False).tobytes()


def _decode_topk(message: pb.TopkLogprobs, field: str) -> TopkLogprobs | None:
    if message.length == 0 or message.k == 0:
        return None
    ids = _array(message.token_ids, INT32, f"{field}.token_ids")
    logprobs = _array(message.logprobs, FLOAT32, f"{field}.logprobs")
    shape = (message.length, message.k)
    if ids.size != shape[0] * shape[1] or logprobs.size != ids.size:
        raise WireError(f"{field}: {ids.size} ids and {logprobs.size} logprobs do not fill {shape}")
    return TopkLogprobs(ids.reshape(shape), logprobs.reshape(shape))


# ---- sampling ----


def encode_sample_response(response: SampleResponse) -> bytes:
    """The body of a finished sample future."""
    message = pb.SampleResponse(prompt_cache_hit_tokens=response.prompt_cache_hit_tokens)
    for sequence in response.sequences:
        encoded = message.sequences.add()
        encoded.stop_reason = pb.STOP_REASON_STOP if sequence.stop_reason == "stop" else pb.STOP_REASON_LENGTH
        encoded.tokens = sequence.tokens_np.astype(INT32, copy=False).tobytes()
        if sequence.logprobs_np is not None:
            encoded.logprobs = sequence.logprobs_np.astype(FLOAT32, copy=False).tobytes()
        if sequence.topk_logprobs_np is not None:
            _encode_topk(sequence.topk_logprobs_np, encoded.topk_sampled_logprobs)
    if response.prompt_logprobs_np is not None:
        message.prompt_logprobs = response.prompt_logprobs_np.astype(FLOAT32, copy=False).tobytes()
    if response.topk_prompt_logprobs_np is not None:
        _encode_topk(response.topk_prompt_logprobs_np, message.topk_prompt_logprobs)
    if response.target_prompt_logprobs is not None:
        _encode_tensor(response.target_prompt_logprobs, message.target_prompt_logprobs)
    if response.prompt_alt_tokens is not None:
        _encode_tensor(response.prompt_alt_tokens.tokens, message.prompt_alt_tokens.tokens)
        _encode_tensor(response.prompt_alt_tokens.logprobs, message.prompt_alt_tokens.logprobs)
    return message.SerializeToString()


def decode_sample_response(body: bytes, sequence_ids: Sequence[str] = ()) -> SampleResponse:
    """The sample response in `body`; `sequence_ids` name its sequences, in order, if the server gave any.

    Raises:
        WireError: not such a message, or fields that contradict each other.
    """
    message = pb.SampleResponse()
    _parse(message, body)
    sequences: list[SampledSequence] = []
    for index, encoded in enumerate(message.sequences):
        field = f"sequences[{index}]"
        tokens = _array(encoded.tokens, INT32, f"{field}.tokens")
        # Empty ones beside tokens are a server's way to send none; those of no tokens are empty.
        has_logprobs = encoded.logprobs or (encoded.HasField("logprobs") and not tokens.size)
        logprobs = _array(encoded.logprobs, FLOAT32, f"{field}.logprobs") if has_logprobs else None
        if logprobs is not None and logprobs.size != tokens.size:
            raise WireError(f"{field}: {tokens.size} tokens but {logprobs.size} logprobs")
        topk = None
        if encoded.HasField("topk_sampled_logprobs"):
            topk = _decode_topk(encoded.topk_sampled_logprobs, f"{field}.topk")
        sequences.append(
            SampledSequence(
                stop_reason="stop" if encoded.stop_reason == pb.STOP_REASON_STOP else "length",
                tokens_np=tokens,
                logprobs_np=logprobs,
                topk_logprobs_np=topk,
                sequence_id=sequence_ids[index] if index < len(sequence_ids) else "",
            )
        )
    alternatives = None
    if message.HasField("prompt_alt_tokens"):
        alternatives = PromptAltTokens(
            _decode_tensor(message.prompt_alt_tokens.tokens, "prompt_alt_tokens.tokens"),
            _decode_tensor(message.prompt_alt_tokens.logprobs, "prompt_alt_tokens.logprobs"),
        )
    return SampleResponse(
        sequences=sequences,
        prompt_logprobs_np=_array(message.prompt_logprobs, FLOAT32, "prompt_logprobs")
        if message.HasField("prompt_logprobs")
        else None,
        topk_prompt_logprobs_np=_decode_topk(message.topk_prompt_logprobs, "topk_prompt_logprobs")
        if message.HasField("topk_prompt_logprobs")
        else None,
        target_prompt_logprobs=_decode_tensor(message.target_prompt_logprobs, "target_prompt_logprobs")
        if message.HasField("target_prompt_logprobs")
        else None,
        prompt_alt_tokens=alternatives,
        prompt_cache_hit_tokens=message.prompt_cache_hit_tokens,
    )


# ---- training ----


def encode_forward_backward_request(request: ForwardBackwardRequest) -> bytes:
    """The body of a forward_backward request."""
    return b"".join(forward_backward_parts(request))


def forward_backward_parts(request: ForwardBackwardRequest, first: int = 0) -> list[bytes]:
    """The same body in parts, to be put one behind the other, and behind or before parts of the same request.

    Complaints count the datums from `first` on.

    Protobuf messages that follow each other read as their union. Here each datum is one, small enough for
    its memory to serve the next: as one message, megabytes would be copied through fresh memory twice more.

    Raises:
        InvalidInput: a number that is no token id.
        WireError: a chunk of a kind that no request to train can carry.
    """
    head = pb.ForwardBackwardRequest(
        model_id=request.model_id,
        seq_id=request.seq_id,
        loss_fn=request.loss_fn,
        forward_only=request.forward_only,
    )
    for name, value in request.loss_fn_config.items():
        if isinstance(value, str):
            head.loss_fn_config_v2[name].text = value
        else:
            # Numbers go into both maps: older servers read only the first.
            head.loss_fn_config[name] = value
            head.loss_fn_config_v2[name].number = value
    parts = [head.SerializeToString()]
    for index, datum in enumerate(request.data, first):
        message = pb.ForwardBackwardRequest()
        encoded = message.data.add()
        for number, chunk in enumerate(datum.model_input.chunks):
            _encode_chunk(chunk, encoded.model_input.add(), f"data[{index}].model_input.chunks[{number}]")
        for name, tensor in datum.loss_fn_inputs.items():
            _encode_tensor(tensor, encoded.loss_fn_inputs[name])
        encoded.model_input_spans.extend(map(_span, datum.model_input_spans or ()))
        encoded.loss_fn_input_spans.extend(map(_span, datum.loss_fn_input_spans or ()))
        parts.append(message.SerializeToString())
    return parts


def _span(span: ProvenanceSpan) -> pb.ProvenanceSpan:
    run = pb.TokenRun(sequence_id=span.sequence_id, offset=span.offset, length=span.length)
    is_prompt = isinstance(span, PromptProvenanceSpan)
    return pb.ProvenanceSpan(prompt_tokens=run) if is_prompt else pb.ProvenanceSpan(sampled_tokens=run)


def _encode_chunk(chunk: ModelInputChunk, message: pb.Chunk, field: str) -> None:
    if isinstance(chunk, ImageChunk):
        message.image.data = chunk.data
        message.image.format = chunk.format
        if chunk.expected_tokens is not None:
            message.image.expected_tokens = chunk.expected_tokens
    elif isinstance(chunk, DmelChunk):
        message.dmel.dmel = chunk.dmel
    elif isinstance(chunk, ImageAssetPointerChunk):
        raise WireError(f"{field} points to an image; a request to train has the image itself")
    else:
        message.encoded_text.tokens = chunk.checked_ids(field).astype(INT32).tobytes()


def decode_forward_backward_request(body: bytes) -> ForwardBackwardRequest:
    """The forward_backward request in `body`.

    Raises:
        WireError: not such a message, or fields that contradict each other.
    """
    message = pb.ForwardBackwardRequest()
    _parse(message, body)
    config: dict[str, float | str] = dict(message.loss_fn_config)
    if message.loss_fn_config_v2:
        config = {
            name: value.text if value.WhichOneof("value") == "text" else value.number
            for name, value in message.loss_fn_config_v2.items()
        }
    return ForwardBackwardRequest(
        model_id=message.model_id,
        seq_id=message.seq_id,
        data=[_decode_datum(datum, f"data[{index}]") for index, datum in enumerate(message.data)],
        loss_fn=message.loss_fn,
        loss_fn_config=config,
        forward_only=message.forward_only,
    )


def identify_forward_backward_request(body: bytes) -> tuple[str, int, bool]:
    """Which request `body` is, where the rest of it cannot be decoded: its run, its number, `forward_only`.

    Raises:
        WireError: not such a message at all.
    """
    message = pb.ForwardBackwardRequest()
    _parse(message, body)
    return message.model_id, message.seq_id, message.forward_only


def _decode_datum(message: pb.Datum, field: str) -> Datum:
    chunks = [
        _decode_chunk(chunk, f"{field}.model_input[{number}]")
        for number, chunk in enumerate(message.model_input)
    ]
    inputs = {
        name: _decode_tensor(tensor, f"{field}.loss_fn_inputs[{name!r}]")
        for name, tensor in message.loss_fn_inputs.items()
    }
    return Datum(ModelInput(chunks=chunks), inputs)


def _decode_chunk(message: pb.Chunk, field: str) -> ModelInputChunk:
    kind = message.WhichOneof("chunk")
    if kind == "encoded_text":
        return EncodedTextChunk.from_numpy(_array(message.encoded_text.tokens, INT32, field))
    if kind == "image":
        image = message.image
        if image.format not in ("png", "jpeg"):
            raise WireError(f"{field}: image format {image.format!r} is not png or jpeg")
        expected = image.expected_tokens if image.HasField("expected_tokens") else None
        return ImageChunk(data=image.data, format=image.format, expected_tokens=expected)
    raise WireError(f"{field}: chunks of kind {kind!r} are not supported; send encoded_text")


def encode_forward_backward_output(output: ForwardBackwardOutput) -> bytes:
    """The body of a finished forward_backward future."""
    message = pb.ForwardBackwardOutput(loss_fn_output_type=output.loss_fn_output_type)
    for name, value in output.metrics.items():
        message.metrics[name] = value
    for record in _records(output.loss_fn_outputs):
        _encode_record(record, message.loss_fn_outputs.add())
    return message.SerializeToString()


def _records(outputs: list[LossFnOutput]) -> Iterable[list[LossFnOutput]]:
    """Runs of neighbours whose arrays can be stored back to back: same names, dtypes, trailing shapes."""
    run: list[LossFnOutput] = []
    previous: object = None
    for output in outputs:
        layout = {name: (tensor.dtype, tuple(tensor.shape[1:])) for name, tensor in output.items()}
        if run and layout != previous:
            yield run
            run = []
        run.append(output)
        previous = layout
    if run:
        yield run


def _encode_record(record: list[LossFnOutput], message: pb.ArrayRecord) -> None:
    message.num_datums = len(record)
    for name, first in record[0].items():
        arrays = [output[name].to_numpy() for output in record]
        batched = message.fields[name]
        batched.dtype = pb.DTYPE_INT64 if first.dtype == "int64" else pb.DTYPE_FLOAT32
        batched.trailing_shape.extend(first.shape[1:])
        batched.data = b"".join(array.tobytes() for array in arrays)
        batched.offsets = np.cumsum([0, *(array.nbytes for array in arrays)], dtype=INT64).tobytes()


def decode_forward_backward_output(body: bytes) -> ForwardBackwardOutput:
    """The forward_backward output in `body`.

    Raises:
        WireError: not such a message, or fields that contradict each other.
    """
    message = pb.ForwardBackwardOutput()
    _parse(message, body)
    outputs: list[LossFnOutput] = []
    for index, record in enumerate(message.loss_fn_outputs):
        outputs.extend(_decode_record(record, f"loss_fn_outputs[{index}]"))
    return ForwardBackwardOutput(message.loss_fn_output_type, outputs, dict(message.metrics))


def _decode_record(message: pb.ArrayRecord, field: str) -> list[LossFnOutput]:
    if not 0 <= message.num_datums <= _INT32_MAX:
        raise WireError(f"{field}: num_datums is {message.num_datums}")
    columns = {
        name: _decode_batched(batched, message.num_datums, f"{field}[{name!r}]")
        for name, batched in message.fields.items()
    }
    return [{name: column[i] for name, column in columns.items()} for i in range(message.num_datums)]


def _decode_batched(message: pb.BatchedTensor, num_datums: int, field: str) -> list[TensorData]:
    offsets = _array(message.offsets, INT64, f"{field}.offsets")
    data = message.data
    if offsets.size != num_datums + 1 or offsets[0] != 0 or offsets[-1] != len(data):
        raise WireError(f"{field}: offsets must be {num_datums + 1} numbers from 0 to {len(data)}")
    if np.any(np.diff(offsets) < 0):
        raise WireError(f"{field}: offsets fall")
    trailing = list(message.trailing_shape)
    if any(size <= 0 for size in trailing):
        raise WireError(f"{field}: trailing shape {trailing} is not positive")
    width = int(np.prod(trailing, dtype=np.int64))
    tensors: list[TensorData] = []
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        values = _values(data[start:end], message.dtype, field)
        if values.size % width:
            raise WireError(f"{field}: {values.size} values do not fill rows of {trailing}")
        tensors.append(TensorData(values, shape=[values.size // width, *trailing]))
    return tensors


def _parse(message: Any, body: bytes) -> None:
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise WireError(f"the body is not a {type(message).__name__} message: {error}") from error
