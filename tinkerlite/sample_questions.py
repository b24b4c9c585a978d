"""What a sample request asks besides completions: checked before it is sent, and when it is answered.

Servers differ in what they can answer, and some pass over what they do not know. So a question
is held against what the server announces, and the answer against the question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tinkerlite.errors import APIResponseValidationError, CapabilityError, InvalidRequest
from tinkerlite.types import EMPTY_SLOT_LOGPROB, SampleResponse, SupportedModel, TensorData, TopkLogprobs
from tinkerlite.types.inputs import MAX_TOKEN_ID

Body = Mapping[str, Any]
"""A sample request as it is sent."""

_TOPK = ("topk_prompt_logprobs", "topk_sample_logprobs")
_BEYOND_SCORING = (*_TOPK, "prompt_logprobs_last_n", "target_prompt_logprobs", "prompt_alt_tokens_k")


def check_count(name: str, count: int) -> None:
    """How many alternatives to give.

    Raises:
        InvalidRequest: fewer than none.
    """
    if count < 0:
        raise InvalidRequest(f"{name} is {count}; it must be 0 (off) or more")


def check_targets(targets: TensorData, prompt_length: int | None) -> None:
    """Token ids to score along a prompt; its length is None where only the server knows it.

    Raises:
        InvalidRequest: not int64, not (P-1, K), no token ids, or none at all.
    """
    field, shape = "target_prompt_logprobs", targets.shape
    if targets.dtype != "int64":
        raise InvalidRequest(f"{field} is {targets.dtype}; token ids are int64")
    rows = None if prompt_length is None else prompt_length - 1
    if len(shape) != 2 or shape[0] != (shape[0] if rows is None else rows):
        raise InvalidRequest(
            f"{field} has shape {shape}; it must be [{'P-1' if rows is None else rows}, K]: a row for each "
            "prompt token after the first"
        )
    ids = targets.values
    if ((ids < -1) | (ids > MAX_TOKEN_ID)).any():
        raise InvalidRequest(
            f"{field} has values that are no token ids; -1 alone means that nothing is asked"
        )
    if not (ids >= 0).any():
        raise InvalidRequest(f"{field} names no token id; leave it out, or put an id where it has -1")


def check_last_n(last_n: int, prompt_length: int | None, prompt_logprobs: bool) -> None:
    """How many of the last prompt tokens to score.

    Raises:
        InvalidRequest: fewer than one, more than have a logprob, or no logprobs are asked for.
    """
    if not prompt_logprobs:
        raise InvalidRequest(
            f"prompt_logprobs_last_n is {last_n}, which says which prompt logprobs to give; set "
            "include_prompt_logprobs too"
        )
    if last_n < 1 or (prompt_length is not None and last_n >= prompt_length):
        most = "P-1" if prompt_length is None else prompt_length - 1
        raise InvalidRequest(
            f"prompt_logprobs_last_n is {last_n}; it must be 1 to {most}: the first token has no logprob"
        )


def goes_beyond_scoring(body: Body) -> bool:
    """Whether a request asks for what not every server can answer."""
    return any(body.get(name) for name in _BEYOND_SCORING)


def check_offered(body: Body, model: SupportedModel) -> None:
    """Hold a request against what the server announces of the model.

    Raises:
        CapabilityError: it has announced what it can do, and this is not among it.
    """
    asked = [name for name in _BEYOND_SCORING if body.get(name)]
    for name in asked:
        if model.sample_features is not None and name not in model.sample_features:
            raise CapabilityError(
                f"the server does not offer {name} for {model.model_name}; it offers "
                f"{', '.join(model.sample_features) or 'completions alone'}"
            )
        if name in _TOPK and model.max_topk is not None and body[name] > model.max_topk:
            raise CapabilityError(
                f"{name} is {body[name]}, and the server gives at most {model.max_topk} alternatives a "
                f"position for {model.model_name}"
            )


def as_asked(response: SampleResponse, body: Body) -> SampleResponse:
    """The answer to a request: all that was asked for, and of the prompt's logprobs no more.

    Raises:
        CapabilityError: something is missing, where the caller expects numbers.
        APIResponseValidationError: as many prompt logprobs as there can be for no reading of the prompt.
    """
    asked_and_got = {
        "prompt_logprobs": response.prompt_logprobs_np,
        "topk_prompt_logprobs": response.topk_prompt_logprobs_np,
        "topk_sample_logprobs": next((each.topk_logprobs_np for each in response.sequences), None),
        "target_prompt_logprobs": response.target_prompt_logprobs,
        "prompt_alt_tokens_k": response.prompt_alt_tokens,
    }
    for name, got in asked_and_got.items():
        if body.get(name) and got is None:
            raise CapabilityError(
                f"the server returned no {name}, though it was asked to; it may not offer that"
            )
    response = _aligned(response, body)
    last_n = body.get("prompt_logprobs_last_n")
    return response if last_n is None else _blank_before_last(response, last_n)


def _aligned(response: SampleResponse, body: Body) -> SampleResponse:
    """The response with one prompt logprob a token: some servers leave out the first, which is none."""
    logprobs = response.prompt_logprobs_np
    if not body.get("prompt_logprobs") or logprobs is None:
        return response
    if not all("tokens" in chunk for chunk in body["prompt"]["chunks"]):
        return response  # only the server knows how long an image is
    length = sum(len(chunk["tokens"]) for chunk in body["prompt"]["chunks"])
    if len(logprobs) == length - 1 and not np.isnan(logprobs[:1]).any():
        return replace(response, prompt_logprobs_np=np.concatenate([[np.float32(np.nan)], logprobs]))
    if len(logprobs) != length:
        raise APIResponseValidationError(
            message=f"prompt logprobs: {len(logprobs)} came back for {length} tokens"
        )
    return response


def _blank_before_last(response: SampleResponse, n: int) -> SampleResponse:
    """Servers that do not know the option score the whole prompt, which differs in cost alone."""
    logprobs, topk = response.prompt_logprobs_np, response.topk_prompt_logprobs_np
    if logprobs is not None:
        logprobs = logprobs.copy()
        logprobs[:-n] = np.nan
    if topk is not None:
        topk = TopkLogprobs(topk.token_ids.copy(), topk.logprobs.copy())
        topk.token_ids[:-n], topk.logprobs[:-n] = 0, EMPTY_SLOT_LOGPROB
    return replace(response, prompt_logprobs_np=logprobs, topk_prompt_logprobs_np=topk)
