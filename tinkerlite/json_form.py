"""The JSON side of the protocol: prompts and tensors as requests carry them, and, for servers that
know no protobuf, the larger messages as well.

The counterpart of `wire/`, which is the binary side. Knows nothing about sending.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinkerlite.types import (
    EMPTY_SLOT_LOGPROB,
    EncodedTextChunk,
    ForwardBackwardOutput,
    ForwardBackwardRequest,
    ModelInput,
    ModelInputChunk,
    PromptAltTokens,
    SampledSequence,
    SampleResponse,
    TensorData,
    TopkLogprobs,
)

Json = dict[str, Any]


def prompt_to_json(prompt: ModelInput) -> Json:
    """`{"chunks": [...]}`, in order."""
    return {"chunks": [_chunk_to_json(chunk) for chunk in prompt.chunks]}


def _chunk_to_json(chunk: ModelInputChunk) -> Json:
    if isinstance(chunk, EncodedTextChunk):
        return {"type": "encoded_text", "tokens": chunk.to_numpy().tolist()}
    return chunk.model_dump(mode="json", exclude_none=True)


def tensor_to_json(tensor: TensorData) -> Json:
    """Flat values with a shape; the listed values and the indices of a CSR matrix."""
    body: Json = {"data": tensor.data, "dtype": tensor.dtype, "shape": tensor.shape}
    if tensor.is_sparse:
        body["sparse_crow_indices"] = tensor.sparse_crow_indices
        body["sparse_col_indices"] = tensor.sparse_col_indices
    return body


def tensor_from_json(body: Json) -> TensorData:
    """The inverse of `tensor_to_json`; a missing shape means one dimension."""
    return TensorData(
        body["data"],
        body["dtype"],
        body.get("shape"),
        body.get("sparse_crow_indices"),
        body.get("sparse_col_indices"),
    )


def forward_backward_to_json(request: ForwardBackwardRequest) -> Json:
    """The request as servers from before protobuf read it."""
    data = [
        {
            "model_input": prompt_to_json(datum.model_input),
            "loss_fn_inputs": {name: tensor_to_json(tensor) for name, tensor in datum.loss_fn_inputs.items()},
        }
        for datum in request.data
    ]
    key = "forward_input" if request.forward_only else "forward_backward_input"
    inputs: Json = {"data": data, "loss_fn": request.loss_fn}
    if request.loss_fn_config:
        inputs["loss_fn_config"] = dict(request.loss_fn_config)
    return {"model_id": request.model_id, "seq_id": request.seq_id, key: inputs}


def forward_backward_from_json(body: Json) -> ForwardBackwardOutput:
    """The output of such a server."""
    outputs = [
        {name: tensor_from_json(tensor) for name, tensor in output.items()}
        for output in body["loss_fn_outputs"]
    ]
    return ForwardBackwardOutput(
        body.get("loss_fn_output_type", ""), outputs, dict(body.get("metrics") or {})
    )


def sample_from_json(body: Json, sequence_ids: Sequence[str] = ()) -> SampleResponse:
    """A sample response of such a server."""
    sequences = [
        SampledSequence(
            stop_reason=sequence["stop_reason"],
            tokens_np=np.asarray(sequence["tokens"], dtype=np.int32),
            logprobs_np=_floats(sequence.get("logprobs")),
            topk_logprobs_np=_topk(sequence.get("topk_logprobs")),
            sequence_id=sequence_ids[index] if index < len(sequence_ids) else "",
        )
        for index, sequence in enumerate(body["sequences"])
    ]
    return SampleResponse(
        sequences=sequences,
        prompt_logprobs_np=_floats(body.get("prompt_logprobs")),
        topk_prompt_logprobs_np=_topk(body.get("topk_prompt_logprobs")),
        target_prompt_logprobs=_tensor(body.get("target_prompt_logprobs")),
        prompt_alt_tokens=_alternatives(body.get("prompt_alt_tokens")),
    )


def _tensor(body: Json | None) -> TensorData | None:
    return None if body is None else tensor_from_json(body)


def _alternatives(body: Json | None) -> PromptAltTokens | None:
    if body is None:
        return None
    return PromptAltTokens(tensor_from_json(body["tokens"]), tensor_from_json(body["logprobs"]))


def _floats(values: list[float | None] | None) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    if values is None:
        return None
    return np.asarray([math.nan if value is None else value for value in values], dtype=np.float32)


def _topk(rows: list[list[tuple[int, float]] | None] | None) -> TopkLogprobs | None:
    if rows is None:
        return None
    width = max((len(row) for row in rows if row), default=0)
    ids = np.zeros((len(rows), width), dtype=np.int32)
    logprobs = np.full((len(rows), width), EMPTY_SLOT_LOGPROB, dtype=np.float32)
    for position, row in enumerate(rows):
        for slot, (token, logprob) in enumerate(row or ()):
            ids[position, slot], logprobs[position, slot] = token, logprob
    return TopkLogprobs(ids, logprobs)
