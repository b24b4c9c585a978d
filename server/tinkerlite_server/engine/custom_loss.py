"""Custom losses: a caller's function of the logprobs, run on one datum at a time.

    loss_program = compile_loss(graph, max_values)
    evaluated = loss_program.evaluate(logprobs, inputs, differentiate=True)

Every step is first taken on tensors without data (device "meta"), which says how large its result
will be; only then on real ones. So nothing of any size is made, however few bytes ask for it.

The gradient stops at the logprobs: dL/dlp is taken here, and the trainer goes on from there.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinkerlite_server.engine.loss_arithmetic import DependsOnValues, with_places
from tinkerlite_server.engine.loss_graph import Here, Step, Steps, Value, read_graph
from tinkerlite_server.engine.loss_sizes import META, OPERATION_ERRORS, cost, size, wants_values
from tinkerlite_server.engine.protocols import LossGraph
from tinkerlite_server.errors import BadRequest

_LONG, _SHORT = (5040, 12), (1, 1)
"""Lengths and numbers of targets to rehearse with: what divides evenly, and what broadcasts with all."""
_MOST_REHEARSED = 4
"""Inputs of unknown dtype behind one step; with more of them it is left to be tried on data."""
_VALUES_A_LOGPROB, _VALUES_A_DATUM = 2**15, 2**16
"""What one of them may compute, so that a crowd of small datums is bounded as large ones are."""
_MOST_KNOWN_SHAPES = 4096


@dataclass(frozen=True)
class Evaluated:
    """What a custom loss says of one datum."""

    loss: float
    gradient: Tensor | None
    """dL/dlp, shaped like the logprobs; None if it was not asked for."""
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class _Failure:
    place: int
    message: str


def compile_loss(graph: LossGraph, max_values: int) -> Program:
    """Check a graph and make it ready to run.

    Args:
        max_values: most values that all operations together may compute for one datum, however large.

    Raises:
        BadRequest: naming the node and the operation that is wrong.
    """
    program = Program(graph, read_graph(graph), max_values)
    program.rehearse()
    return program


class Program:
    """Implements `LossProgram`."""

    def __init__(self, graph: LossGraph, steps: Steps, max_values: int) -> None:
        self.graph = graph
        self._steps = steps
        self._max_values = max_values
        self._known: set[tuple[Any, ...]] = set()
        """Shapes and dtypes of inputs with which the whole graph is known to stay within bounds."""
        self._foresees = True
        """Whether shapes alone say how large everything gets."""

    def evaluate(self, logprobs: Tensor, inputs: Mapping[str, Tensor], *, differentiate: bool) -> Evaluated:
        """The loss of one datum, its gradient and its metrics.

        Args:
            logprobs: of the targets, in nats; no gradient flows further.
            inputs: the other inputs by name, of the ranks that the graph declares.

        Raises:
            BadRequest: an operation failed, made too much, or the result is not finite; names the node.
        """
        leaf = logprobs.detach().requires_grad_(differentiate)
        given = [leaf, *(inputs[each.name] for each in self.graph.inputs[1:])]
        with torch.set_grad_enabled(differentiate):
            values = self._run(given, watch=not self._fits(given))
        loss = self._scalar(values[self._steps.loss])
        number = float(loss.detach())
        if number != number or abs(number) == float("inf"):
            raise self._error(f"the loss is {number}")
        gradient = self._gradient(loss, leaf) if differentiate else None
        metrics = {name: self._metric(name, values[place]) for name, place in self._steps.metrics.items()}
        return Evaluated(number, gradient, metrics)

    # ---- running ----

    def _run(self, given: Sequence[Tensor], *, watch: bool, until: int | None = None) -> list[Any]:
        """The values of all steps, in order, after the inputs.

        Args:
            watch: look at each step's size before it is taken.
            until: stop after this place.
        """
        values: list[Any] = list(given)
        device, spent, room = given[0].device, 0, self._room(given)
        for step in self._steps.steps:
            if until is not None and len(values) > until:
                break
            args: list[Any] = []
            try:
                args, kwargs = _filled(step, values, device)
                if watch:
                    if step.target == "operator.getitem":
                        args = [args[0], with_places(args[1])]
                    spent += cost(step.operation, args, kwargs)
                    if spent > room:
                        raise OverflowError(
                            f"up to here the graph computes {spent} values, and this server allows "
                            f"{room} for {given[0].numel()} logprobs"
                        )
                value = step.operation.call(*args, **kwargs)
                size(value)
            except torch.OutOfMemoryError:
                raise  # the machine's trouble, not the graph's
            except DependsOnValues:
                raise
            except OPERATION_ERRORS as error:
                if device.type == "meta" and wants_values(error, args):
                    raise DependsOnValues from error
                raise _StepFailed(len(values), self._located(step, error)) from error
            values.append(value)
        return values

    def _room(self, given: Sequence[Tensor]) -> int:
        """Most values that may be computed for one datum."""
        return min(self._max_values, _VALUES_A_DATUM + _VALUES_A_LOGPROB * given[0].numel())

    def _fits(self, given: Sequence[Tensor]) -> bool:
        """Whether the whole graph is known to stay within bounds on inputs of these shapes."""
        if not self._foresees:
            return False
        shapes = tuple((each.shape, each.dtype) for each in given)
        if shapes in self._known:
            return True
        try:
            with torch.no_grad():
                self._run([each.detach().to(META) for each in given], watch=True)
        except DependsOnValues:
            self._foresees = False
            return False
        except BadRequest:
            return False  # watched, it fails the same way, or shows that it does not
        if len(self._known) >= _MOST_KNOWN_SHAPES:
            self._known.clear()
        self._known.add(shapes)
        return True

    # ---- results ----

    def _scalar(self, loss: Any) -> Tensor:
        if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.is_floating_point():
            raise self._error(f"the loss must be one number (a tensor of rank 0), and is {_described(loss)}")
        return loss

    def _gradient(self, loss: Tensor, leaf: Tensor) -> Tensor:
        if not loss.requires_grad:
            raise self._error("no gradient reaches logprobs: everything between was detached")
        try:
            (gradient,) = torch.autograd.grad(loss, leaf)
        except torch.OutOfMemoryError:
            raise
        except OPERATION_ERRORS as error:
            raise self._error(f"its gradient failed: {_first_line(error)}") from error
        if not bool(torch.isfinite(gradient).all()):
            place = torch.isfinite(gradient).logical_not().nonzero()[0].tolist()
            value = float(gradient[tuple(place)])
            raise self._error(f"its gradient is {value} at position {place[0] if len(place) == 1 else place}")
        return gradient

    def _metric(self, name: str, value: Any) -> float:
        if isinstance(value, Tensor) and value.numel() == 1:
            return float(value.detach())
        if isinstance(value, bool | int | float):
            return float(value)
        raise self._error(f"metric {name!r} must be one number, and is {_described(value)}")

    # ---- checking, before there is any datum ----

    def rehearse(self) -> None:
        """Take every step on tensors without data, as far as that tells anything.

        Lengths and dtypes are not known yet. So a step is wrong only if it fails whatever its inputs'
        dtypes are, and both on long inputs and on those of length one, which broadcast with everything.

        Raises:
            BadRequest: naming the node that fails, or what is wrong with the results.
        """
        outcome = self._attempt({}, _LONG)
        if isinstance(outcome, _Failure):
            if not self._may_succeed(outcome.place):
                raise BadRequest(outcome.message)
        elif outcome is not None:
            self._scalar(outcome[self._steps.loss])

    def _may_succeed(self, place: int) -> bool:
        inputs = sorted(each for each in self._steps.feeding(place) if 0 < each < self._steps.inputs)
        if len(inputs) > _MOST_REHEARSED:
            return True
        for dtypes in itertools.product((torch.float32, torch.int64), repeat=len(inputs)):
            for sizes in (_LONG, _SHORT):
                tried = self._attempt(dict(zip(inputs, dtypes, strict=True)), sizes, until=place)
                if not isinstance(tried, _Failure):
                    return True
        return False

    def _attempt(
        self, dtypes: Mapping[int, torch.dtype], sizes: tuple[int, int], until: int | None = None
    ) -> list[Any] | _Failure | None:
        """The values, or the step that failed; None if that depends on values."""
        given = [
            torch.empty(sizes[: each.rank], dtype=dtypes.get(place, _usual_dtype(each.name)), device=META)
            for place, each in enumerate(self.graph.inputs)
        ]
        try:
            with torch.no_grad():
                return self._run(given, watch=True, until=until)
        except DependsOnValues:
            return None
        except _StepFailed as error:
            return _Failure(error.place, str(error))

    # ---- words ----

    def _located(self, step: Step, error: Exception) -> str:
        return str(self._error(f"node {step.name!r} ({step.target}): {_first_line(error)}"))

    def _error(self, problem: str) -> BadRequest:
        return BadRequest(f"custom loss {self.graph.name[:80]!r}: {problem}")


class _StepFailed(BadRequest):
    """An operation failed; `place` says which."""

    def __init__(self, place: int, message: str) -> None:
        super().__init__(message)
        self.place = place


def _usual_dtype(name: str) -> torch.dtype:
    return torch.int64 if name == "target_tokens" else torch.float32


# ---- arguments ----


def _filled(step: Step, values: Sequence[Any], device: torch.device) -> tuple[list[Any], dict[str, Any]]:
    """A step's arguments, with values and the device in their places."""
    args = [_fill(each, values, device) for each in step.args]
    kwargs = {name: _fill(each, values, device) for name, each in step.kwargs.items()}
    if "device" in kwargs or step.operation.makes_tensor:
        kwargs["device"] = device
    if step.target == "to":
        args = [device if isinstance(each, str) else each for each in args]
    return args, kwargs


def _fill(value: Any, values: Sequence[Any], device: torch.device) -> Any:
    match value:
        case Value():
            return values[value.place]
        case Here():
            return device
        case list():
            return [_fill(each, values, device) for each in value]
        case tuple():
            return tuple(_fill(each, values, device) for each in value)
        case slice():
            ends = (_fill(each, values, device) for each in (value.start, value.stop, value.step))
            return slice(*(_as_index(each) for each in ends))
        case _:
            return value


def _as_index(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.is_meta:
        raise DependsOnValues
    return int(value)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    return f"a {type(value).__name__}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
