"""How each kind of result is read, whichever form the server sends it in.

One `ResultType` per operation. Knows nothing about sending or waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from pydantic import BaseModel

from tinkerlite.json_form import forward_backward_from_json, sample_from_json
from tinkerlite.polling import ResultType
from tinkerlite.types import (
    ForwardBackwardOutput,
    LoadWeightsResponse,
    OptimStepResponse,
    SampleResponse,
    SaveWeightsExternalResponse,
    SaveWeightsForSamplerResponse,
    SaveWeightsResponse,
)
from tinkerlite.wire import decode_forward_backward_output, decode_sample_response

ModelT = TypeVar("ModelT", bound=BaseModel)


def json_result(name: str, kind: type[ModelT]) -> ResultType[ModelT]:
    """A result that is always JSON."""
    return ResultType(name, kind.model_validate)


OPTIM_STEP = json_result("optim_step", OptimStepResponse)
SAVE_STATE = json_result("save_state", SaveWeightsResponse)
SAVE_FOR_SAMPLER = json_result("save_weights_for_sampler", SaveWeightsForSamplerResponse)
SAVE_EXTERNAL = json_result("save_weights_external", SaveWeightsExternalResponse)
LOAD_STATE = json_result("load_state", LoadWeightsResponse)


def forward_backward_result(name: str) -> ResultType[ForwardBackwardOutput]:
    """The output of `forward` or `forward_backward`, with `loss:sum` among its metrics."""
    return ResultType(
        name,
        lambda body: _with_loss_sum(forward_backward_from_json(body)),
        lambda content: _with_loss_sum(decode_forward_backward_output(content)),
    )


def sample_result(name: str, sequence_ids: Sequence[str] | None) -> ResultType[SampleResponse]:
    """The response to a sample request; the server names its sequences in the receipt."""
    ids = sequence_ids or ()
    return ResultType(
        name, lambda body: sample_from_json(body, ids), lambda content: decode_sample_response(content, ids)
    )


def _with_loss_sum(output: ForwardBackwardOutput) -> ForwardBackwardOutput:
    """Some servers call it `total_loss:sum`, and some leave it to the reader to add up."""
    if "loss:sum" in output.metrics:
        return output
    if "total_loss:sum" in output.metrics:
        loss = output.metrics["total_loss:sum"]
    elif all("elementwise_loss" in each for each in output.loss_fn_outputs):
        terms = [each["elementwise_loss"].values for each in output.loss_fn_outputs]
        loss = float(sum(np.sum(term, dtype=np.float64) for term in terms))
    else:
        return output
    return replace(output, metrics={**output.metrics, "loss:sum": loss})
