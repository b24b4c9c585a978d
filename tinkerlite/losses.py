"""What each loss needs of a datum, checked before anything is sent.

Knows shapes, dtypes and names, and no mathematics. Losses that are not listed here are the
server's to check.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tinkerlite.errors import InvalidDatum, InvalidInput, InvalidRequest
from tinkerlite.types import (
    LOSS_INPUT_DTYPES,
    Datum,
    EncodedTextChunk,
    ImageAssetPointerChunk,
    ImageChunk,
    ModelInput,
    TensorData,
)
from tinkerlite.types.inputs import MAX_TOKEN_ID


@dataclass(frozen=True)
class LossSchema:
    """The inputs of one loss besides `target_tokens`: each has the shape of `target_tokens`."""

    required: frozenset[str]
    optional: frozenset[str] = frozenset()
    many_targets: bool = False
    """Whether `target_tokens` may be (N, K): K targets at every position."""

    @cached_property
    def needed(self) -> list[str]:
        """All that must be given, `target_tokens` first."""
        return ["target_tokens", *sorted(self.required)]

    @cached_property
    def names(self) -> list[str]:
        """All that may be given, in the same order."""
        return [*self.needed, *sorted(self.optional)]


_POLICY = frozenset({"logprobs", "advantages"})
_CLIPS = frozenset({"clip_low_threshold", "clip_high_threshold"})

LOSS_SCHEMAS: Mapping[str, LossSchema] = {
    "cross_entropy": LossSchema(frozenset(), frozenset({"weights"}), many_targets=True),
    "importance_sampling": LossSchema(_POLICY),
    "ppo": LossSchema(_POLICY, _CLIPS),
    "cispo": LossSchema(_POLICY, _CLIPS),
    "dro": LossSchema(_POLICY),
    "gspo": LossSchema(_POLICY, _CLIPS | {"sequence_ratio_mask"}),
}


def check_data(
    data: Sequence[Datum], loss_fn: str, loss_fn_config: Mapping[str, float | str] | None = None
) -> None:
    """Everything that can be known to be wrong on this side, but for token ids: who encodes them sees those.

    Raises:
        InvalidDatum: naming the datum's index and the field.
        InvalidRequest: there is no data, or an option is not a finite number or a text.
    """
    check_is_data(data)
    for name, value in (loss_fn_config or {}).items():
        if not isinstance(value, str) and not math.isfinite(value):
            raise InvalidRequest(f"loss_fn_config[{name!r}] is {value}; it must be finite")
    schema = LOSS_SCHEMAS.get(loss_fn)
    for index, datum in enumerate(data):
        length = _length(datum.model_input)
        if length == 0:
            raise InvalidDatum(f"data[{index}].model_input is empty; a model needs at least one token")
        if schema is not None:
            _check_inputs(datum, length, loss_fn, schema, f"data[{index}].loss_fn_inputs")


def check_is_data(data: object) -> None:
    """A non-empty list of datums.

    Raises:
        InvalidRequest: it is something else, or empty.
        InvalidDatum: one of the items is something else.
    """
    if isinstance(data, Datum) or not isinstance(data, Sequence):
        raise InvalidRequest(f"data must be a list of Datum, not {type(data).__name__}")
    items: Sequence[object] = data  # pyright: ignore[reportUnknownVariableType]
    if not items:
        raise InvalidRequest("data is empty; there is nothing to run")
    for index, datum in enumerate(items):
        if not isinstance(datum, Datum):
            raise InvalidDatum(f"data[{index}] is of type {type(datum).__name__}; it must be a Datum")


def check_prompt(prompt: object) -> int | None:
    """A prompt that a model can read: how many tokens, or None where only the server knows it (images).

    Raises:
        InvalidInput: no ModelInput, no tokens, or something that is no token id.
    """
    if not isinstance(prompt, ModelInput):
        raise InvalidInput(f"prompt is of type {type(prompt).__name__}; use ModelInput.from_ints(tokens)")
    for number, chunk in enumerate(prompt.chunks):
        if isinstance(chunk, EncodedTextChunk):
            chunk.checked_ids(f"prompt.chunks[{number}]")
    length = _length(prompt)
    if length == 0:
        raise InvalidInput("prompt is empty; a model needs at least one token")
    return length


def _length(model_input: ModelInput) -> int | None:
    """The number of tokens, or None where only the server knows it (images)."""
    length = 0
    for chunk in model_input.chunks:
        tokens = (
            chunk.expected_tokens if isinstance(chunk, ImageChunk | ImageAssetPointerChunk) else chunk.length
        )
        if tokens is None:
            return None
        length += tokens
    return length


def _check_inputs(datum: Datum, length: int | None, loss_fn: str, schema: LossSchema, where: str) -> None:
    inputs = datum.loss_fn_inputs
    for name in schema.needed:
        if name not in inputs:
            raise InvalidDatum(f"{where} lacks {name!r}, which {loss_fn} needs; it has {sorted(inputs)}")
    if unknown := sorted(inputs.keys() - schema.names):
        raise InvalidDatum(f"{where}[{unknown[0]!r}] means nothing to {loss_fn}, which takes {schema.names}")
    targets = inputs["target_tokens"]
    _check_targets(targets, length, loss_fn, schema, f"{where}['target_tokens']")
    for name, tensor in inputs.items():
        _check_tensor(name, tensor, targets.shape, f"{where}[{name!r}]")


def _check_targets(
    targets: TensorData, length: int | None, loss_fn: str, schema: LossSchema, where: str
) -> None:
    shape = targets.shape
    if len(shape) != 1 and not (schema.many_targets and len(shape) == 2):
        allowed = "(N,) or (N, K)" if schema.many_targets else "(N,)"
        raise InvalidDatum(f"{where} has shape {shape}; {loss_fn} takes {allowed}")
    if length is not None and shape[0] != length:
        raise InvalidDatum(
            f"{where} has length {shape[0]}, and model_input has {length} tokens; there must be one "
            "target for each: the token after it (model_input = tokens[:-1], target_tokens = tokens[1:])"
        )


def _check_tensor(name: str, tensor: TensorData, shape: list[int], where: str) -> None:
    if tensor.dtype != LOSS_INPUT_DTYPES[name]:
        raise InvalidDatum(f"{where} is {tensor.dtype}; it must be {LOSS_INPUT_DTYPES[name]}")
    if tensor.shape != shape:
        raise InvalidDatum(
            f"{where} has shape {tensor.shape}, and target_tokens has {shape}; they must be equal"
        )
    values = tensor.values
    if tensor.dtype == "float32":
        if np.isfinite(values).all():
            return
        wrong, rule = ~np.isfinite(values), "it must be finite"
    else:
        if not values.size or values.view(np.uint64).max() <= MAX_TOKEN_ID:  # negative ones are large as well
            return
        wrong, rule = (values < 0) | (values > MAX_TOKEN_ID), "that is no token id"
    place = int(np.argmax(wrong.reshape(-1)))
    raise InvalidDatum(f"{where}: value {place} is {values.reshape(-1)[place]}; {rule}")
