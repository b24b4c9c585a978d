"""How large the result of an operation will be, before it is made.

The operation is called on tensors without data (torch's device "meta"), which have shapes and
dtypes alone. Where the size depends on values, the operation has a bound of its own (`room`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from tinkerlite_server.engine.loss_arithmetic import (
    MAX_INTEGER,
    TENSOR_OVERHEAD,
    DependsOnValues,
    products,
)
from tinkerlite_server.engine.loss_operations import DTYPES
from tinkerlite_server.engine.loss_signatures import Operation

META = torch.device("meta")

OPERATION_ERRORS = (
    RuntimeError,  # torch's own, and NotImplementedError
    TypeError,
    ValueError,
    IndexError,
    ArithmeticError,
    AssertionError,
    AttributeError,
)
"""What an operation raises that does not like its arguments."""


def cost(operation: Operation, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """How many values a call computes, at most. Nothing is computed.

    Raises:
        DependsOnValues: the arguments have no data, and shapes do not tell.
    """
    if operation.room is not None:
        return operation.room(args, kwargs)
    with torch.no_grad():
        try:
            result = operation.call(*_without_data(args), **_without_data(kwargs))
        except (*OPERATION_ERRORS, DependsOnValues):
            # Numbers may come as tensors of rank 0, where torch wants their value.
            few = _without_data(args, numbers=False), _without_data(kwargs, numbers=False)
            result = operation.call(*few[0], **few[1])
    inside = products(args, result) if operation.multiplies else 0
    if operation.pairs:
        inside += torch.broadcast_shapes(
            *(each.shape for each in _tensors([*args, *kwargs.values()]))
        ).numel()
    return size(result) + inside


def size(value: Any) -> int:
    """How many values something holds.

    Raises:
        TypeError: it is nothing that a loss may compute with.
        OverflowError: an integer leaves 64 bits.
    """
    match value:
        case Tensor():
            if value.dtype not in DTYPES.values() or value.layout != torch.strided:
                raise TypeError(f"it makes a tensor of {value.dtype}, {value.layout}, which is not run here")
            return value.numel()
        case bool() | float() | torch.dtype() | torch.device():
            return 1
        case int():
            if abs(value) > MAX_INTEGER:
                raise OverflowError("an integer leaves 64 bits")
            return 1
        case list() | tuple():
            return sum(TENSOR_OVERHEAD + size(each) for each in cast("Sequence[Any]", value))
        case _:
            raise TypeError(f"it gives a {type(value).__name__}")


def wants_values(error: Exception, args: Sequence[Any]) -> bool:
    """Whether a call without data may have failed for that, rather than for what it was given."""
    return isinstance(error, NotImplementedError) or any(
        each.ndim == 0 and not each.is_floating_point() for each in _tensors(args)
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _without_data(value: Any, *, numbers: bool = True) -> Any:
    """The same arguments on the device "meta"; integers of rank 0 become numbers unless `numbers`."""
    match value:
        case Tensor():
            if not (numbers or value.is_meta or value.ndim or value.is_floating_point()):
                return value.item()
            return value.detach().to(META)
        case torch.device():
            return META
        case dict():
            return {name: _without_data(each, numbers=numbers) for name, each in value.items()}
        case list():
            return [_without_data(each, numbers=numbers) for each in value]
        case torch.Size():
            return value
        case tuple():
            parts = [_without_data(each, numbers=numbers) for each in value]
            return tuple(parts) if type(value) is tuple else type(value)(parts)  # `max`'s have names
        case _:
            return value
