"""Operations of custom losses that need care: numbers without tensors, and sizes that depend on values.

Python's numbers know no bounds, and neither do sequences that are multiplied; here they have some.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

MAX_INTEGER = 2**63 - 1
_MAX_SEQUENCE = 64
TENSOR_OVERHEAD = 128
"""What each of many tensors counts for, besides its values."""
Number = bool | int | float


class DependsOnValues(Exception):
    """What comes out cannot be told from shapes alone."""


def guarded(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """One of Python's operators, on tensors or on numbers of bounded size.

    Raises (when called):
        TypeError: the operands are neither, or not such as the operator is for.
        OverflowError: a number leaves 64 bits.
    """
    if name == "getitem":
        return _item

    def apply(*operands: Any) -> Any:
        if any(isinstance(each, Tensor) for each in operands):
            return call(*operands)
        if name in ("eq", "ne"):
            return call(*operands)
        if name == "add" and all(isinstance(each, tuple | list) for each in operands):
            if sum(len(each) for each in operands) > _MAX_SEQUENCE:
                raise OverflowError(f"the sequence gets longer than {_MAX_SEQUENCE}")
            return tuple(operands[0]) + tuple(operands[1])
        for each in operands:
            if not isinstance(each, Number):
                raise TypeError(f"{name} is for tensors and numbers, not for a {type(each).__name__}")
        if name in ("pow", "lshift") and all(isinstance(each, int) for each in operands) and operands[1] > 64:
            raise OverflowError(f"{name} by {operands[1]} leaves 64 bits")
        return call(*operands)

    return apply


def _item(value: Any, index: Any) -> Any:
    """`value[index]`, of a tensor or of what an operation returned."""
    if isinstance(value, Tensor):
        return value[with_places(index) if value.is_meta else index]
    if isinstance(value, tuple | list) and isinstance(index, int | slice):
        return value[index]
    raise TypeError(f"a {type(value).__name__} is not indexed by a {type(index).__name__}")


def with_places(index: Any) -> Any:
    """An index with its boolean masks as the places where they hold, so that its size is known.

    `x[mask]` is `x[mask.nonzero(as_tuple=True)]`, and a mask among other indices stands for as many as
    it has dimensions.
    """
    parts = index if isinstance(index, tuple) else (index,)
    if not any(_is_mask(part) for part in parts):
        return index
    if any(_is_mask(part) and part.is_meta for part in parts):
        raise DependsOnValues
    spread: list[Any] = []
    for part in parts:
        spread.extend(part.nonzero(as_tuple=True) if _is_mask(part) else [part])
    return tuple(spread)


def _is_mask(part: Any) -> bool:
    return isinstance(part, Tensor) and part.dtype == torch.bool and part.ndim > 0


def of_numbers(call: Callable[..., Any]) -> Callable[..., Any]:
    """A function of `math`: a tensor of one value becomes a number, and no gradient goes through it."""

    def apply(*operands: Any) -> Any:
        if any(isinstance(each, Tensor) and each.is_meta for each in operands):
            raise DependsOnValues
        numbers = [float(each.detach()) if isinstance(each, Tensor) else each for each in operands]
        return call(*numbers)

    return apply


def attribute(value: Any, name: str) -> Any:
    """What `getattr` may read: of a tensor, or of what `max`, `sort`, `topk` and their like return."""
    if isinstance(value, Tensor) and name in ATTRIBUTES:
        return ATTRIBUTES[name](value)
    if isinstance(value, tuple) and name in FIELDS and hasattr(value, name):
        return getattr(value, name)
    raise TypeError(f"a {type(value).__name__} has no {name!r} here")


ATTRIBUTES: Mapping[str, Callable[[Tensor], Any]] = {
    "shape": lambda tensor: tensor.shape,
    "ndim": lambda tensor: tensor.ndim,
    "dtype": lambda tensor: tensor.dtype,
    "device": lambda tensor: tensor.device,
    "T": lambda tensor: tensor.T,
    "mT": lambda tensor: tensor.mT,
    "H": lambda tensor: tensor.H,
    "mH": lambda tensor: tensor.mH,
    "data": lambda tensor: tensor.detach(),
    "real": lambda tensor: tensor.real,
}
FIELDS = ("values", "indices", "min", "max")


def count(value: Any) -> int:
    """`numel` of a tensor or of a shape."""
    if isinstance(value, Tensor | torch.Size):
        return value.numel()
    raise TypeError(f"a {type(value).__name__} has no numel")


def method(call: Callable[..., Any]) -> Callable[..., Any]:
    """A method of Tensor, on tensors alone."""

    def apply(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"it is a tensor's method, called on a {type(tensor).__name__}")
        return call(tensor, *args, **kwargs)

    return apply


def stay(tensor: Tensor, **_: Any) -> Tensor:
    """A loss runs where its logprobs are; to move it "to the CPU" is to leave it there."""
    return tensor


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """torch's, on one or two operands: more would pass through products of any size.

    Raises:
        ValueError: there are more, or the equation has an ellipsis.
    """
    if len(operands) > 2 or "." in equation:
        raise ValueError("einsum is run on one or two operands, with every dimension named")
    return torch.einsum(equation, *operands)


# ---- sizes that depend on values ----


def room_of_broadcast(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Of what is at most as large as its operands broadcast together."""
    _check_values(args)
    shapes = [each.shape for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
    return torch.Size(torch.broadcast_shapes(*shapes)).numel()


def room_of_places(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Of the indices of every place in a tensor."""
    _check_values(args)
    tensor = _argument(args, kwargs, 0, "input")
    return tensor.numel() * max(tensor.ndim, 1)


def room_of_parts(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Of a tensor in parts, of which there are at most as many as it is long."""
    tensor = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)), None)
    if tensor is None:
        raise TypeError("only a tensor has parts")
    return tensor.numel() + TENSOR_OVERHEAD * max(tensor.shape, default=0)


def room_of_repeats(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Of a tensor whose parts are repeated, each as often as another tensor says."""
    tensor, repeats = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "repeats")
    if isinstance(repeats, Tensor):
        _check_values([repeats])
        most = 0 if repeats.numel() == 0 else int(repeats.max())
    else:
        most = int(repeats)
    return tensor.numel() * max(most, 1)


def room_of_bins(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Of a count for every number up to the largest."""
    _check_values(args)
    tensor = _argument(args, kwargs, 0, "input")
    least = _argument(args, kwargs, 2, "minlength", 0)
    return max(int(tensor.max()) + 1 if tensor.numel() else 0, int(least))


def room_of_classes(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Of a row for every value, as long as there are classes."""
    tensor = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)), None)
    if tensor is None:
        raise TypeError("one_hot is for a tensor")
    classes = _argument(args, kwargs, 1, "num_classes", -1)
    if classes < 0:
        _check_values([tensor])
        classes = int(tensor.max()) + 1 if tensor.numel() else 1
    return tensor.numel() * max(int(classes), 1)


PRODUCTS_PER_VALUE = 16
"""What a multiplication inside a matrix product counts for, against a value that is kept."""


def products(args: Sequence[Any], result: Any) -> int:
    """Values' worth of work inside a product of matrices, and of the copies that broadcasting makes.

    An (n, m) by an (m, p) matrix: m^2 = nm * mp / np, so m follows from the sizes of all three.
    """
    tensors = [each for each in args if isinstance(each, Tensor)]
    if len(tensors) != 2 or not isinstance(result, Tensor) or result.numel() == 0:
        return 0
    summed = math.isqrt(tensors[0].numel() * tensors[1].numel() // result.numel())
    copies = 0
    if all(each.ndim >= 2 for each in tensors) and max(each.ndim for each in tensors) > 2:
        batch = torch.Size(torch.broadcast_shapes(*(each.shape[:-2] for each in tensors))).numel()
        copies = batch * max(each.shape[-2] * each.shape[-1] for each in tensors)
    return result.numel() * summed // PRODUCTS_PER_VALUE + copies


def _check_values(args: Sequence[Any]) -> None:
    """Raises DependsOnValues if there are none to look at."""
    if any(isinstance(each, Tensor) and each.is_meta for each in args):
        raise DependsOnValues


def _argument(
    args: Sequence[Any], kwargs: Mapping[str, Any], position: int, name: str, default: Any = None
) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)
