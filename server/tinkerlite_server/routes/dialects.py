"""JSON forms of what current clients send and read as protobuf, for older clients and for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, StrictInt

from tinkerlite.errors import InvalidTensor
from tinkerlite.types import (
    Datum,
    EncodedTextChunk,
    ForwardBackwardRequest,
    ModelInput,
    SampledSequence,
    TensorData,
)
from tinkerlite.wire import decode_forward_backward_output, decode_sample_response
from tinkerlite_server.errors import BadRequest
from tinkerlite_server.futures import Done
from tinkerlite_server.routes.exchange import Body, parse

# ---- in ----


class Chunk(Body):
    """One chunk of a model input. Only text has tokens, and only text is understood."""

    type: str = "encoded_text"
    tokens: Sequence[StrictInt] = ()


class Input(Body):
    """A model input."""

    chunks: list[Chunk]

    def model_input(self, field: str) -> ModelInput:
        """The type that it stands for.

        Raises:
            BadRequest: a chunk is no text, or has ids beyond any vocabulary.
        """
        for number, chunk in enumerate(self.chunks):
            if chunk.type != "encoded_text":
                raise BadRequest(
                    f"{field}.chunks[{number}] is of type {chunk.type!r}; the models here read text alone"
                )
            if any(abs(token) >= 2**31 for token in chunk.tokens):
                raise BadRequest(f"{field}.chunks[{number}].tokens has numbers that are no token ids")
        return ModelInput(chunks=[EncodedTextChunk(tokens=chunk.tokens) for chunk in self.chunks])


class Tensor(Body):
    """A tensor: flat, or CSR."""

    data: list[Any]
    dtype: Literal["int64", "float32"]
    shape: list[int] | None = None
    sparse_crow_indices: list[int] | None = None
    sparse_col_indices: list[int] | None = None

    def tensor_data(self, field: str) -> TensorData:
        """The type that it stands for.

        Raises:
            BadRequest: its parts contradict each other.
        """
        try:
            return TensorData(
                self.data, self.dtype, self.shape, self.sparse_crow_indices, self.sparse_col_indices
            )
        except InvalidTensor as error:
            raise BadRequest(f"{field}: {error}") from error


class JsonDatum(Body):
    """A datum."""

    model_input: Input
    loss_fn_inputs: dict[str, Tensor]


class Work(Body):
    """A batch and its loss."""

    data: list[JsonDatum]
    loss_fn: str
    loss_fn_config: dict[str, float | str] | None = None


class ForwardBackwardBody(Body):
    """Body of forward_backward and forward."""

    model_id: str
    seq_id: int | None = Field(default=None, ge=0)
    forward_backward_input: Work | None = None
    forward_input: Work | None = None


def forward_backward_from_json(raw: dict[str, Any], *, forward_only: bool) -> ForwardBackwardRequest:
    """The request in a JSON body.

    Raises:
        BadRequest: naming the field that is wrong.
    """
    body = parse(ForwardBackwardBody, raw)
    work = body.forward_input if forward_only else body.forward_backward_input
    if work is None:
        raise BadRequest(f"{'forward_input' if forward_only else 'forward_backward_input'} is missing")
    return ForwardBackwardRequest(
        model_id=body.model_id,
        seq_id=body.seq_id or 0,
        data=[_datum(datum, f"data[{index}]") for index, datum in enumerate(work.data)],
        loss_fn=work.loss_fn,
        loss_fn_config=work.loss_fn_config or {},
        forward_only=forward_only,
    )


def _datum(datum: JsonDatum, field: str) -> Datum:
    inputs = {
        name: tensor.tensor_data(f"{field}.loss_fn_inputs[{name!r}]")
        for name, tensor in datum.loss_fn_inputs.items()
    }
    return Datum(datum.model_input.model_input(f"{field}.model_input"), inputs)


# ---- out ----


def as_json(result: Done) -> bytes:
    """A result's JSON form."""
    if result.content == "sample":
        return _sample(result.body)
    if result.content == "forward_backward":
        return _forward_backward(result.body)
    return result.body


def _sample(body: bytes) -> bytes:
    response = decode_sample_response(body)
    targets, alternatives = response.target_prompt_logprobs, response.prompt_alt_tokens
    return json.dumps(
        {
            "type": "sample",
            "sequences": [_sequence(sequence) for sequence in response.sequences],
            "prompt_logprobs": response.prompt_logprobs,
            "topk_prompt_logprobs": response.topk_prompt_logprobs,
            "target_prompt_logprobs": None if targets is None else _tensor(targets),
            "prompt_alt_tokens": None
            if alternatives is None
            else {"tokens": _tensor(alternatives.tokens), "logprobs": _tensor(alternatives.logprobs)},
        }
    ).encode()


def _tensor(tensor: TensorData) -> dict[str, Any]:
    body: dict[str, Any] = {"data": tensor.data, "dtype": tensor.dtype, "shape": tensor.shape}
    if tensor.sparse_crow_indices is not None and tensor.sparse_col_indices is not None:
        body["sparse_crow_indices"] = tensor.sparse_crow_indices
        body["sparse_col_indices"] = tensor.sparse_col_indices
    return body


def _sequence(sequence: SampledSequence) -> dict[str, Any]:
    return {
        "stop_reason": sequence.stop_reason,
        "tokens": sequence.tokens,
        "logprobs": sequence.logprobs,
        "topk_logprobs": sequence.topk_logprobs,
    }


def _forward_backward(body: bytes) -> bytes:
    output = decode_forward_backward_output(body)
    return json.dumps(
        {
            "type": "forward_backward",
            "loss_fn_output_type": output.loss_fn_output_type,
            "loss_fn_outputs": [
                {name: _tensor(tensor) for name, tensor in datum.items()} for datum in output.loss_fn_outputs
            ],
            "metrics": output.metrics,
        }
    ).encode()
