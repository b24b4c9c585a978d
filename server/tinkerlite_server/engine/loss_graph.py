"""Reading a custom loss's graph: every step checked against the table, nothing run.

A graph comes from outside, as data. Here it becomes a list of steps, each a function from
`loss_operations.py` with arguments that are numbers, earlier values, and a few constants of torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinkerlite_server.engine.loss_arithmetic import MAX_INTEGER
from tinkerlite_server.engine.loss_operations import (
    DTYPES,
    FUNCTIONS,
    LAYOUTS,
    MEMORY_FORMATS,
    METHODS,
    NEUTRAL,
    TEXTS,
    why_not,
)
from tinkerlite_server.engine.loss_signatures import ALIASES, Operation
from tinkerlite_server.engine.protocols import LossGraph, LossNode
from tinkerlite_server.errors import BadRequest

MAX_NODES = 1024
MAX_CONSTANTS = 16_384
"""Most numbers, names and references in one graph."""
MAX_INPUTS = 16
MAX_METRICS = 64
_MAX_DEPTH = 8

_INPUT_NAME = re.compile(r"[a-z_][a-z0-9_]{0,63}")
_NODE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_METRIC = re.compile(r"custom/[a-z0-9_./-]{1,64}:(sum|mean)")
_EQUATION = re.compile(r"[A-Za-z, >-]{1,64}")


@dataclass(frozen=True)
class Value:
    """Stands for the value of an input or of an earlier step, by its place among them."""

    place: int


class Here:
    """Stands for the device on which the loss runs."""


HERE = Here()


@dataclass(frozen=True)
class Step:
    """One operation and its arguments, in which `Value` and `Here` are still to be filled in."""

    name: str
    target: str
    operation: Operation
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def places(self) -> Iterator[int]:
        """The places of the values that it uses."""
        yield from _places([*self.args, *self.kwargs.values()])


@dataclass(frozen=True)
class Steps:
    """A graph in the order in which it runs. Places count inputs first, then steps."""

    inputs: int
    steps: Sequence[Step]
    loss: int
    metrics: Mapping[str, int]

    def step(self, place: int) -> Step:
        """The step that makes the value at a place."""
        return self.steps[place - self.inputs]

    def feeding(self, place: int) -> set[int]:
        """The places of everything that a value is computed from, itself included."""
        found, waiting = set[int](), [place]
        while waiting:
            current = waiting.pop()
            if current not in found:
                found.add(current)
                if current >= self.inputs:
                    waiting.extend(self.step(current).places())
        return found


def read_graph(graph: LossGraph) -> Steps:
    """The steps of a graph.

    Raises:
        BadRequest: naming the node, its operation, and what is wrong with it.
    """
    return _Reader(graph).read()


class _Reader:
    def __init__(self, graph: LossGraph) -> None:
        self._graph = graph
        self._places: dict[str, int] = {}
        self._constants = 0
        self._node: LossNode | None = None

    def read(self) -> Steps:
        graph = self._graph
        self._check_inputs()
        if not 1 <= len(graph.nodes) <= MAX_NODES:
            raise self._error(f"it has {len(graph.nodes)} nodes; this server runs 1 to {MAX_NODES}")
        self._all_names = {node.name for node in graph.nodes}
        steps: list[Step] = []
        for number, node in enumerate(graph.nodes):
            self._node = node
            if not _NODE_NAME.fullmatch(node.name):
                raise self._error("a node is named by letters, digits and underscores, at most 128")
            if node.name in self._places:
                raise self._error("there is an earlier node of this name")
            if number < len(graph.inputs):
                self._check_placeholder(node, graph.inputs[number].name)
            elif node.op == "output":
                return self._finish(node, steps, number)
            else:
                steps.append(self._step(node))
            self._places[node.name] = len(self._places)
        self._node = None
        raise self._error("it has no output node")

    # ---- parts ----

    def _check_inputs(self) -> None:
        inputs = self._graph.inputs
        names = [each.name for each in inputs]
        if not 1 <= len(inputs) <= MAX_INPUTS:
            raise self._error(
                f"it has {len(inputs)} inputs; a custom loss takes 1 to {MAX_INPUTS}, logprobs included"
            )
        if names[0] != "logprobs" or inputs[0].rank == 0:
            raise self._error("its first input must be logprobs, of rank 1 or 2")
        for name in names:
            if not _INPUT_NAME.fullmatch(name):
                raise self._error(
                    f"input {name!r} must be a lowercase name of letters, digits and underscores"
                )
            if names.count(name) > 1:
                raise self._error(f"input {name!r} is there twice")

    def _check_placeholder(self, node: LossNode, name: str) -> None:
        if node.op != "placeholder" or node.target != name or node.args or node.kwargs:
            raise self._error(f"here the placeholder of input {name!r} is wanted, without a default")

    def _step(self, node: LossNode) -> Step:
        match node.op:
            case "call_function":
                operation = FUNCTIONS.get(node.target)
            case "call_method":
                operation = METHODS.get(node.target)
            case "placeholder":
                raise self._error("it is no declared input, or comes after other nodes")
            case "get_attr":
                raise self._error("it captures a tensor; a custom loss reads its inputs alone")
            case "call_module":
                raise self._error("it calls a module; use functions such as torch.nn.functional's")
            case _:
                raise self._error("there is no such kind of node")
        if operation is None:
            raise self._error(f"it {why_not(node.target)}")
        args = tuple(self._decode(arg) for arg in node.args)
        kwargs = {name: self._decode(arg) for name, arg in node.kwargs.items()}
        if node.op == "call_method" and not (args and isinstance(args[0], Value)):
            raise self._error("a method's first argument is the tensor that it is called on")
        if problem := operation.problem(len(args), kwargs):
            raise self._error(f"it {problem}")
        given = [(operation.parameter(place), arg) for place, arg in enumerate(args)]
        given += [(frozenset({ALIASES.get(name, name)}), arg) for name, arg in kwargs.items()]
        for names, arg in given:
            self._check_argument(names, arg)
        return Step(node.name, node.target, operation, args, kwargs)

    def _finish(self, node: LossNode, steps: list[Step], number: int) -> Steps:
        if number != len(self._graph.nodes) - 1:
            raise self._error("nodes follow the output")
        returned = self._decode(node.args[0], metrics=True) if len(node.args) == 1 else None
        if not (isinstance(returned, tuple | list) and len(returned) == 2):
            raise self._error("a custom loss returns (loss, metrics)")
        loss, metrics = returned
        if not isinstance(loss, Value):
            raise self._error(f"the loss must be computed, and is {loss!r}")
        if not isinstance(metrics, dict) or len(metrics) > MAX_METRICS:
            raise self._error(f"the metrics must be a dict of at most {MAX_METRICS}")
        for name, value in metrics.items():
            if not _METRIC.fullmatch(name):
                raise self._error(
                    f"metric {name[:80]!r} must be named custom/<name>:sum or custom/<name>:mean"
                )
            if not isinstance(value, Value):
                raise self._error(f"metric {name!r} must be computed, and is {value!r}")
        found = Steps(
            len(self._graph.inputs), steps, loss.place, {name: each.place for name, each in metrics.items()}
        )
        if 0 not in found.feeding(loss.place):
            raise self._error("the loss does not depend on logprobs, so it has no gradient")
        return found

    # ---- arguments ----

    def _decode(self, value: Any, depth: int = 0, *, metrics: bool = False) -> Any:
        self._constants += 1
        if self._constants > MAX_CONSTANTS or depth > _MAX_DEPTH:
            raise self._error(
                f"its arguments are too many or too deep; a graph has room for {MAX_CONSTANTS} numbers and "
                f"references, nested {_MAX_DEPTH} deep"
            )
        match value:
            case None | bool():
                return value
            case int() | float():
                return self._number(value)
            case str():
                return value
            case list():
                return [self._decode(each, depth + 1, metrics=metrics) for each in value]
            case {"ref": str(name)} if len(value) == 1:
                return self._reference(name)
            case {"tuple": list(items)} if len(value) == 1:
                return tuple(self._decode(each, depth + 1, metrics=metrics) for each in items)
            case {"dict": dict(items)} if len(value) == 1 and metrics:
                return {name: self._decode(each, depth + 1) for name, each in items.items()}
            case {"slice": [start, stop, step]} if len(value) == 1:
                return slice(*(self._decode(each, depth + 1) for each in (start, stop, step)))
            case {"ellipsis": True} if len(value) == 1:
                return ...
            case {"float": "inf" | "-inf" | "nan" as text} if len(value) == 1:
                return float(text)
            case {"dtype": str(name)} if len(value) == 1 and name in DTYPES:
                return DTYPES[name]
            case {"device": "cpu"} if len(value) == 1:
                return HERE
            case {"layout": str(name)} if len(value) == 1 and name in LAYOUTS:
                return LAYOUTS[name]
            case {"memory_format": str(name)} if len(value) == 1 and name in MEMORY_FORMATS:
                return MEMORY_FORMATS[name]
            case _:
                raise self._error(f"its argument {_short(value)} is none that this server understands")

    def _number(self, value: float) -> float:
        if isinstance(value, int):
            if abs(value) > MAX_INTEGER:
                raise self._error("it has an integer of more than 64 bits")
        elif not math.isfinite(value):
            raise self._error('infinity and NaN are written {"float": "inf"}, "-inf" or "nan"')
        return value

    def _reference(self, name: str) -> Value:
        if name in self._places:
            return Value(self._places[name])
        if name in self._all_names:
            raise self._error(
                f"it uses node {name!r}, which is not computed before it: nodes come in the order they run"
            )
        raise self._error(f"it uses node {_short(name)}, and there is none of that name")

    def _check_argument(self, names: frozenset[str], value: Any) -> None:
        name = "/".join(sorted(names))
        neutral = [each for one in names for each in NEUTRAL.get(one, ())]
        if neutral and not isinstance(value, Value) and value not in neutral:
            raise self._error(f"its {name} is {_short(value)}; it must be {' or '.join(map(repr, neutral))}")
        if "device" in names and not (value is None or value == "cpu" or isinstance(value, Value | Here)):
            raise self._error(f"its device is {_short(value)}; a loss runs where the server's logprobs are")
        if names & {"attribute", "equation"} and not isinstance(value, str):
            raise self._error(f"its {name} is {_short(value)}; it must be a text")
        for text in _texts(value):
            words = [each for one in names for each in TEXTS.get(one, ())]
            fits = text is value and (
                text in words
                or (text == "cpu" and names & {"device", "any"})
                or ("equation" in names and _EQUATION.fullmatch(text))
            )
            if not fits:
                wanted = f"it may be one of {words}" if words else "no text is taken there"
                raise self._error(f"its {name} is the text {_short(text)}; {wanted}")

    def _error(self, problem: str) -> BadRequest:
        where = ""
        if self._node is not None:
            where = f"node {_short(self._node.name)} ({self._node.op} {_short(self._node.target)}): "
        return BadRequest(f"custom loss {_short(self._graph.name)}: {where}{problem}")


def _places(value: Any) -> Iterator[int]:
    match value:
        case Value():
            yield value.place
        case list() | tuple():
            for each in value:
                yield from _places(each)
        case slice():
            yield from _places([value.start, value.stop, value.step])
        case _:
            pass


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list() | tuple():
            for each in value:
                yield from _texts(each)
        case slice():
            yield from _texts([value.start, value.stop, value.step])
        case _:
            pass


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
