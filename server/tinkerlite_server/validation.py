"""Everything a training request can get wrong, checked before it is accepted.

In: the types of the wire. Out: the engine's `TrainBatch`, whose ids are in range, whose lengths
agree and whose numbers are finite. Messages name the datum and the field, the value, and what
would be right. Ids are never clamped, nor is anything unknown dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinkerlite.types import (
    Datum,
    EncodedTextChunk,
    ForwardBackwardRequest,
    ModelInput,
    TensorData,
)
from tinkerlite_server.engine.protocols import (
    Example,
    Floats,
    Ids,
    LossProgram,
    ModelInfo,
    TrainBatch,
)
from tinkerlite_server.errors import BadRequest
from tinkerlite_server.futures import fingerprint
from tinkerlite_server.settings import Limits

NAME = re.compile(r"(?!\.\.?$)[A-Za-z0-9_.-]{1,128}")
"""Of a checkpoint; "." and ".." mean something else in the paths that name it."""
TTL_SECONDS = range(3600, 10 * 365 * 24 * 3600 + 1)
"""One hour to ten years."""


@dataclass(frozen=True, kw_only=True)
class LossSchema:
    """What a loss takes besides `target_tokens`, each shaped like it."""

    needs: tuple[str, ...] = ()
    allows: tuple[str, ...] = ()
    config: tuple[str, ...] = ()
    many_targets: bool = False
    """Whether targets may be (N, K)."""


_CLIPS = ("clip_low_threshold", "clip_high_threshold")
_POLICY = ("logprobs", "advantages")

LOSSES: Mapping[str, LossSchema] = {
    "cross_entropy": LossSchema(allows=("weights",), many_targets=True),
    "importance_sampling": LossSchema(needs=_POLICY),
    "ppo": LossSchema(needs=_POLICY, allows=_CLIPS, config=_CLIPS),
    "cispo": LossSchema(needs=_POLICY, allows=_CLIPS, config=_CLIPS),
    "dro": LossSchema(needs=_POLICY, config=("beta",)),
    "gspo": LossSchema(needs=_POLICY, allows=(*_CLIPS, "sequence_ratio_mask"), config=_CLIPS),
}
"""The losses on offer. Their formulas and defaults are in engine/losses.py."""

NO_STABLE_REINFORCE = (
    "the objective of stable_reinforce is not published, so this server does not have that loss. Train with "
    "loss_fn importance_sampling on samples of the current weights, or with ppo or cispo on older ones (in a "
    "cookbook recipe: loss_fn=importance_sampling); none of them needs provenance"
)
"""What to do instead, for the recipes that have it as their default."""


def train_batch(
    request: ForwardBackwardRequest, info: ModelInfo, limits: Limits, program: LossProgram | None = None
) -> TrainBatch:
    """The engine's batch.

    Args:
        program: the loss itself, where `loss_fn` is "custom".

    Raises:
        BadRequest: naming what is wrong, and in which datum.
    """
    if program is None:
        schema = LOSSES.get(request.loss_fn)
        if request.loss_fn == "stable_reinforce":
            raise BadRequest(f"loss_fn: {NO_STABLE_REINFORCE}")
        if schema is None:
            raise BadRequest(f"loss_fn {request.loss_fn!r} is not one of {sorted(LOSSES)}")
        config = _loss_config(request.loss_fn, schema, request.loss_fn_config)
    else:
        schema, config = _custom_schema(program), {}
    if not request.data:
        raise BadRequest("data is empty; send at least one datum")
    room = limits.max_body_bytes // 4
    examples: list[Example] = []
    for index, datum in enumerate(request.data):
        field = f"data[{index}]"
        _check_room(datum, room, field)
        if program is None:
            example = _example(datum, request.loss_fn, schema, info, field)
            _check_bounds(example.inputs, config, f"{field}.loss_fn_inputs")
        else:
            example = _custom_example(datum, program, schema, info, field)
        room -= example.target_tokens.size + sum(values.size for values in example.inputs.values())
        examples.append(example)
    return TrainBatch(
        model_id=request.model_id,
        examples=examples,
        loss_fn=request.loss_fn,
        loss_config=config,
        forward_only=request.forward_only,
        program=program,
    )


def custom_loss_id(request: ForwardBackwardRequest) -> str:
    """Which custom loss a request wants.

    Raises:
        BadRequest: it does not say, or says more than that.
    """
    loss_id = request.loss_fn_config.get("loss_id")
    if not isinstance(loss_id, str) or len(request.loss_fn_config) != 1:
        raise BadRequest(
            f"loss_fn 'custom' takes one option, the text 'loss_id', and has {dict(request.loss_fn_config)}"
        )
    return loss_id


def _custom_schema(program: LossProgram) -> LossSchema:
    inputs = program.graph.inputs
    return LossSchema(needs=tuple(each.name for each in inputs[1:]), many_targets=inputs[0].rank == 2)


def _custom_example(
    datum: Datum, program: LossProgram, schema: LossSchema, info: ModelInfo, field: str
) -> Example:
    """A datum of a custom loss, with the inputs that the loss reads; others are not its concern."""
    graph = program.graph
    tokens = text_tokens(datum.model_input, info, f"{field}.model_input")
    given = datum.loss_fn_inputs
    if missing := sorted({"target_tokens", *schema.needs} - set(given)):
        raise BadRequest(f"{field}.loss_fn_inputs lacks {missing}, which custom loss {graph.name!r} reads")
    targets = _targets(given["target_tokens"], len(tokens), schema, info, "custom", field)
    _check_rank(
        given["target_tokens"], "logprobs", graph.inputs[0].rank, f"{field}.loss_fn_inputs['target_tokens']"
    )
    inputs = {}
    for each in graph.inputs[1:]:
        where = f"{field}.loss_fn_inputs[{each.name!r}]"
        values = given[each.name].to_numpy()
        if each.rank == 0 and values.size == 1:
            values = values.reshape(())  # on the wire a number is a tensor without a shape
        else:
            _check_rank(given[each.name], each.name, each.rank, where)
        _check_finite(values, where)
        inputs[each.name] = values
    return Example(tokens, targets, inputs)


def _check_rank(tensor: TensorData, name: str, rank: int, field: str) -> None:
    if len(tensor.shape) != rank:
        raise BadRequest(
            f"{field} has shape {tuple(tensor.shape)}, and the custom loss declares {name} with rank {rank}"
        )


def _loss_config(loss_fn: str, schema: LossSchema, given: Mapping[str, float | str]) -> dict[str, float]:
    config: dict[str, float] = {}
    for name, value in given.items():
        if name not in schema.config:
            known = f"it takes {sorted(schema.config)}" if schema.config else "it takes none"
            raise BadRequest(f"loss_fn_config[{name!r}] is not an option of {loss_fn}; {known}")
        if isinstance(value, str) or not np.isfinite(value) or value < 0:
            raise BadRequest(f"loss_fn_config[{name!r}] is {value!r}; it must be a number, 0 or more")
        config[name] = float(value)
    low, high = (config.get(name) for name in _CLIPS)
    if low is not None and high is not None and low > high:
        raise BadRequest(
            f"loss_fn_config: clip_low_threshold {low} is above clip_high_threshold {high}; they bound the "
            "ratio itself, such as 0.8 and 1.2"
        )
    return config


def _check_room(datum: Datum, room: int, field: str) -> None:
    """A sparse tensor of a few bytes may claim any shape; it must not unfold to more than a body holds."""
    size = sum(int(np.prod(tensor.shape, dtype=object)) for tensor in datum.loss_fn_inputs.values())
    if size > room:
        raise BadRequest(
            f"{field}.loss_fn_inputs unfold to {size} values, and this request has room for {room} more; "
            "send fewer datums at once"
        )


def _example(datum: Datum, loss_fn: str, schema: LossSchema, info: ModelInfo, field: str) -> Example:
    tokens = text_tokens(datum.model_input, info, f"{field}.model_input")
    _check_input_names(datum, loss_fn, schema, field)
    targets = _targets(datum.loss_fn_inputs["target_tokens"], len(tokens), schema, info, loss_fn, field)
    inputs = {
        name: _floats(tensor, targets.shape, f"{field}.loss_fn_inputs[{name!r}]")
        for name, tensor in datum.loss_fn_inputs.items()
        if name != "target_tokens"
    }
    if loss_fn == "cross_entropy":
        inputs.setdefault("weights", np.ones(targets.shape, np.float32))
    return Example(tokens, targets, inputs)


def _check_input_names(datum: Datum, loss_fn: str, schema: LossSchema, field: str) -> None:
    needed = {"target_tokens", *schema.needs}
    given = set(datum.loss_fn_inputs)
    if missing := sorted(needed - given):
        raise BadRequest(
            f"{field}.loss_fn_inputs lacks {missing}, which {loss_fn} needs; it has {sorted(given)}"
        )
    if unknown := sorted(given - needed - set(schema.allows)):
        raise BadRequest(
            f"{field}.loss_fn_inputs has {unknown}, which {loss_fn} does not take; "
            f"it takes {sorted(needed | set(schema.allows))}"
        )


def _check_bounds(inputs: Mapping[str, Floats | Ids], config: Mapping[str, float], field: str) -> None:
    """Bounds of each token are those of a ratio; a mask counts tokens: neither is below 0."""
    for name in (*_CLIPS, "sequence_ratio_mask"):
        if name in inputs and (inputs[name] < 0).any():
            place = int(np.argmax(inputs[name] < 0))
            raise BadRequest(f"{field}[{name!r}] is {inputs[name][place]} at [{place}]; it must be 0 or more")
    low, high = (inputs.get(name, config.get(name)) for name in _CLIPS)
    if low is None or high is None:
        return
    above = np.atleast_1d(np.asarray(low, np.float32) > np.asarray(high, np.float32))
    if above.any():
        raise BadRequest(
            f"{field}: clip_low_threshold is above clip_high_threshold at [{int(np.argmax(above))}]; they "
            "bound the ratio itself, such as 0.8 and 1.2"
        )


def _targets(
    tensor: TensorData, length: int, schema: LossSchema, info: ModelInfo, loss_fn: str, field: str
) -> Ids:
    field = f"{field}.loss_fn_inputs['target_tokens']"
    shape = tensor.shape
    if len(shape) not in ((1, 2) if schema.many_targets else (1,)) or shape[0] != length or 0 in shape:
        wanted = f"({length},) or ({length}, K)" if schema.many_targets else f"({length},)"
        raise BadRequest(
            f"{field} has shape {tuple(shape)}; {loss_fn} wants {wanted}, one row per token of model_input"
        )
    if len(shape) == 2 and shape[1] > info.vocab_size:
        raise BadRequest(f"{field} has {shape[1]} targets a token, and there are {info.vocab_size} tokens")
    if tensor.dtype != "int64":
        raise BadRequest(f"{field} is {tensor.dtype}; token ids are int64")
    targets = tensor.to_numpy()
    _check_ids(targets, info, field)
    return targets


def _floats(tensor: TensorData, shape: tuple[int, ...], field: str) -> Floats:
    if tuple(tensor.shape) != shape:
        raise BadRequest(f"{field} has shape {tuple(tensor.shape)}, and target_tokens has {shape}")
    values = tensor.to_numpy().astype(np.float32, copy=False)
    _check_finite(values, field)
    return values


def _check_finite(values: NDArray[Any], field: str) -> None:
    if not np.isfinite(values).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise BadRequest(f"{field} is {values[place]} at {list(place)}; it must be finite")


def text_tokens(model_input: ModelInput, info: ModelInfo, field: str) -> Ids:
    """The token ids of a text input, (N,).

    Raises:
        BadRequest: it is empty, too long for the context, no text, or has ids outside the vocabulary.
    """
    for number, chunk in enumerate(model_input.chunks):
        if not isinstance(chunk, EncodedTextChunk):
            raise BadRequest(
                f"{field}.chunks[{number}] is of type {chunk.type!r}; {info.name} reads text alone"
            )
    tokens = model_input.to_numpy()
    if len(tokens) == 0:
        raise BadRequest(f"{field} is empty; it needs at least one token")
    if len(tokens) > info.max_context:
        raise BadRequest(
            f"{field} has {len(tokens)} tokens, and the context of {info.name} holds {info.max_context}"
        )
    _check_ids(tokens, info, field)
    return tokens


def _check_ids(ids: NDArray[np.int64], info: ModelInfo, field: str) -> None:
    outside = (ids < 0) | (ids >= info.vocab_size)
    if outside.any():
        place = tuple(int(i) for i in np.argwhere(outside)[0])
        raise BadRequest(
            f"{field} has token id {int(ids[place])} at {list(place)}; {info.name} has ids "
            f"0 to {info.vocab_size - 1}. Was it made with another model's tokenizer?"
        )


def batch_fingerprint(batch: TrainBatch) -> bytes:
    """The digest of a forward_backward: of its content, whatever order its bytes came in."""
    parts: list[Any] = [batch.loss_fn, sorted(batch.loss_config.items()), batch.forward_only]
    if batch.program is not None:
        parts.append(batch.program.graph.loss_id)
    for example in batch.examples:
        arrays = [example.tokens, example.target_tokens]
        arrays += [values for _, values in sorted(example.inputs.items())]
        parts.append(sorted(example.inputs))
        parts += [part for array in arrays for part in (array.shape, array.tobytes())]
    return fingerprint(*parts)


# ---- names and times ----


def check_name(name: str, field: str) -> str:
    """A checkpoint's name.

    Raises:
        BadRequest: it has other characters than letters, digits and `_.-`, or is too long.
    """
    if not NAME.fullmatch(name):
        raise BadRequest(
            f"{field} is {name!r}; a name has 1 to 128 letters, digits, dots, dashes and underscores, "
            "and is neither . nor .."
        )
    return name


def check_ttl(ttl_seconds: int | None) -> int | None:
    """How long to keep a checkpoint; None is for ever.

    Raises:
        BadRequest: less than an hour or more than ten years.
    """
    if ttl_seconds is not None and ttl_seconds not in TTL_SECONDS:
        raise BadRequest(
            f"ttl_seconds is {ttl_seconds}; it must be {TTL_SECONDS.start} (an hour) to "
            f"{TTL_SECONDS.stop - 1} (ten years), or absent to keep the checkpoint"
        )
    return ttl_seconds
