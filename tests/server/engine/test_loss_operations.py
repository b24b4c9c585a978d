"""Every operation that a custom loss may name: it runs, and how large its result gets is known before."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tinkerlite_server.engine.loss_arithmetic import DependsOnValues
from tinkerlite_server.engine.loss_operations import FUNCTIONS, METHODS, NEUTRAL, why_not
from tinkerlite_server.engine.loss_signatures import Operation

SQUARE = torch.linspace(0.1, 0.9, 16).reshape(4, 4)
VECTOR = torch.linspace(0.1, 0.9, 4)
BATCH = torch.linspace(0.1, 0.9, 32).reshape(2, 4, 4)
IDS = torch.tensor([0, 2, 1, 3])
PLACES = IDS[:, None].repeat(1, 4)

VALUES: dict[str, list[Any]] = {
    "input": [SQUARE, VECTOR, IDS, SQUARE > 0.5, BATCH],
    "other": [SQUARE.flip(0), VECTOR, IDS, 2, BATCH],
    "tensor": [VECTOR, IDS, SQUARE],
    "vec": [VECTOR],
    "vec2": [VECTOR],
    "mat2": [SQUARE, BATCH],
    "weight": [0.3],
    "end": [SQUARE, 8],
    "source": [0, VECTOR, SQUARE],
    "destination": [1],
    "exponent": [2],
    "min": [0.2],
    "max": [0.5],
    "dim": [0, -1],
    "dim0": [0],
    "dim1": [1],
    "k": [2],
    "q": [0.5],
    "sizes": [(2, 2)],
    "size": [(4, 4), (2, 4, 4), 4, 16, 2],
    "start": [0, 1],
    "length": [2],
    "shifts": [1],
    "split_sizes": [[1, 3]],
    "index": [0, IDS, PLACES],
    "indices": [PLACES],
    "sections": [2],
    "mask": [SQUARE > 0.5],
    "value": [0.0],
    "src": [SQUARE],
    "reduce": ["amax"],
    "condition": [SQUARE > 0.5],
    "shape": [(2, 8), 16],
    "dims": [(0, 1), 1],
    "repeats": [2, (2, 1), torch.tensor([1, 2, 0, 1])],
    "tensors": [[SQUARE, SQUARE], SQUARE],
    "sorted_sequence": [VECTOR],
    "boundaries": [VECTOR],
    "elements": [IDS],
    "test_elements": [IDS],
    "fill_value": [1.5],
    "steps": [4],
    "n": [3],
    "dimension": [0],
    "step": [1],
    "threshold": [0.5],
    "target": [SQUARE, IDS],
    "pad": [(1, 1)],
    "log_input": [True],
    "full": [False],
    "eps": [1e-8],
    "reduction": [1],
    "x": [SQUARE, 0.5, 1.5],
    "y": [SQUARE, 0.5],
    "a": [SQUARE, IDS, VECTOR],
    "b": [SQUARE, 2, VECTOR],
    "object": [SQUARE],
    "attribute": ["shape"],
    "equation": ["ij,jk->ik"],
    "operands": [(SQUARE, SQUARE)],
    "chunks": [2],
    "split_size": [2],
    "any": [torch.float64],
    "dtype": [torch.float64],
}
"""Arguments by parameter; those that do not fit an operation are passed over."""

SAME = {
    "input1": "input",
    "input2": "input",
    "tensor1": "input",
    "tensor2": "input",
    "x1": "input",
    "x2": "input",
    "values": "input",
    "split_size_or_sections": "sections",
}
NAMED: dict[str, dict[str, Any]] = {"clamp": {"min": 0.2}, "clip": {"max": 0.5}}
"""What some operations need by name."""

UNFIT = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)

OPERATIONS = [(name, name.rpartition(".")[2], each) for name, each in FUNCTIONS.items()]
OPERATIONS += [(f"method {name}", name, each) for name, each in METHODS.items()]


def calls(operation: Operation) -> Iterator[list[Any]]:
    needed = operation.positional[: operation.required]
    if operation.variadic:
        needed = operation.positional
    pools = [
        next(VALUES[each] for name in sorted(names) if (each := SAME.get(name, name)) in VALUES)
        for names in needed
    ]
    for chosen in itertools.product(*pools):
        spread: list[Any] = []
        for each, names in zip(chosen, needed, strict=True):
            spread.extend(each if "operands" in names else [each])
        yield spread


def without_data(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta")
    return [without_data(each) for each in value] if isinstance(value, list) else value


def shapes(result: Any) -> list[Any]:
    parts = result if isinstance(result, tuple | list) else [result]
    return [(each.shape, each.dtype) if isinstance(each, Tensor) else each for each in parts]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "short", "operation"), OPERATIONS, ids=[each[0] for each in OPERATIONS])
def test_an_operation_runs_and_says_before_how_large_its_result_is(
    name: str, short: str, operation: Operation
):
    ran = 0
    kwargs = NAMED.get(short, {})
    device = {"device": "meta"} if operation.makes_tensor else {}
    for args in calls(operation):
        try:
            result = operation.call(*args, **kwargs)
        except UNFIT:
            continue  # these arguments are none for it
        ran += 1
        if operation.room is not None:
            made = sum(each.numel() for each in (result if isinstance(result, tuple) else [result]))
            assert made <= operation.room(args, kwargs)
            continue
        try:
            foreseen = operation.call(*map(without_data, args), **kwargs, **device)
        except DependsOnValues:
            assert not isinstance(result, Tensor)
            continue
        if "device" not in short and not isinstance(result, torch.device):
            assert shapes(foreseen) == shapes(result)
    assert ran, f"no arguments fit {name}"


def test_parameters_are_those_of_the_functions_where_python_knows_them():
    """Functions in Python state their signatures: every parameter is there, in this order."""
    checked = 0
    for name, operation in FUNCTIONS.items():
        if not inspect.isfunction(operation.call) or operation.call.__module__.startswith("tinkerlite"):
            continue
        known = inspect.signature(operation.call).parameters
        if any(each.kind is each.VAR_POSITIONAL for each in known.values()):
            continue
        stated = set().union(*operation.positional)
        order = [next(iter(names & set(known))) for names in operation.positional]
        assert order == [each for each in known if each in stated], name
        checked += 1
    assert checked > 25


def test_no_operation_takes_what_would_make_it_impure():
    writes = {"generator", "training", "grad", "tensors_out", "create_graph", "file"}
    for name, _, operation in OPERATIONS:
        names = set().union(*operation.positional, operation.keywords)
        assert not names & writes, name
        for dangerous in names & {"out", "inplace", "requires_grad"}:
            assert NEUTRAL[dangerous] in ((None,), (False,)), name


@pytest.mark.filterwarnings("ignore")
def test_nothing_in_the_tables_changes_its_argument():
    for name, short, operation in OPERATIONS:
        assert not short.endswith("_") or short in ("and_", "or_"), name
        for args in calls(operation):
            before = [each.clone() if isinstance(each, Tensor) else each for each in args]
            try:
                operation.call(*args, **NAMED.get(short, {}))
            except UNFIT:
                continue
            for each, kept in zip(args, before, strict=True):
                assert not isinstance(each, Tensor) or torch.equal(each, kept), name
            break


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("add_", "changes a tensor in place; use add"),
        ("torch.nn.functional.relu_", "changes a tensor in place; use relu"),
        ("item", "leaves torch"),
        ("torch.randn_like", "draws random numbers"),
        ("torch.nn.functional.dropout", "draws random numbers"),
        ("torch.empty_like", "memory that nobody wrote"),
        ("backward", "the server's to call"),
        ("torch.linalg.svd", "not an operation that this server runs"),
    ],
)
def test_what_is_not_run_has_a_reason(target: str, reason: str):
    assert target not in FUNCTIONS
    assert target not in METHODS
    assert reason in why_not(target)
