"""Custom losses: a graph computes what the function that it was traced from computes, or says why not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.server.loss_graphs import GraphWriter, weighted_square
from tinkerlite_server.engine.custom_loss import Program, compile_loss
from tinkerlite_server.errors import BadRequest

PLENTY = 2**27


def compiled(write: GraphWriter, max_values: int = PLENTY) -> Program:
    return compile_loss(write.graph(), max_values)


def slice_of(start: Any = None, stop: Any = None, step: Any = None) -> dict[str, Any]:
    return {"slice": [start, stop, step]}


# ---- what is computed: a graph by hand, and the function in torch ----


def clipped_policy_gradient() -> GraphWriter:
    write = GraphWriter(logprobs=1, old=1, advantages=1, mask=1)
    ratio = write.method("exp", write.call("operator.sub", write.input(), write.input("old")))
    clipped = write.call("torch.clamp", ratio, min=0.8, max=1.2)
    terms = [write.call("operator.mul", each, write.input("advantages")) for each in (ratio, clipped)]
    masked = write.call("operator.mul", write.call("torch.minimum", *terms), write.input("mask"))
    count = write.method("clamp", write.method("sum", write.input("mask")), min=1)
    mean = write.call("operator.truediv", write.method("sum", masked), count)
    beyond = write.method("float", write.call("operator.ne", ratio, clipped))
    return write.returns(
        write.call("operator.neg", mean), {"custom/clipped:mean": write.method("mean", beyond)}
    )


def clipped_policy_gradient_in_torch(lp: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Any:
    ratio = (lp - old).exp()
    clipped = ratio.clamp(0.8, 1.2)
    terms = torch.minimum(ratio * advantages, clipped * advantages) * mask
    return -terms.sum() / mask.sum().clamp(min=1), {"custom/clipped:mean": (ratio != clipped).float().mean()}


def smoothness() -> GraphWriter:
    """Neighbours compared, lengths used as numbers, and one position looked up by another's value."""
    write = GraphWriter(logprobs=1)
    later = write.call("operator.getitem", write.input(), slice_of(1))
    earlier = write.call("operator.getitem", write.input(), slice_of(None, -1))
    jumps = write.method("abs", write.call("operator.sub", later, earlier))
    length = write.call("operator.getitem", write.call("getattr", write.input(), "shape"), 0)
    root = write.call("math.sqrt", length)
    places = write.call("torch.arange", length, device=write.call("getattr", write.input(), "device"))
    tilt = write.method("sum", write.call("operator.mul", write.input(), places))
    least = write.call("operator.getitem", write.input(), write.call("torch.argmin", write.input()))
    scaled = write.call("operator.truediv", write.method("sum", jumps), root)
    return write.returns(write.call("operator.add", write.call("operator.add", scaled, tilt), least))


def smoothness_in_torch(lp: Tensor) -> Any:
    jumps = (lp[1:] - lp[:-1]).abs().sum() / math.sqrt(lp.shape[0])
    return jumps + (lp * torch.arange(lp.shape[0])).sum() + lp[lp.argmin()], {}


def soft_targets() -> GraphWriter:
    """Reverse KL on K targets a position, and only where a mask says so."""
    write = GraphWriter(logprobs=2, teacher=2, mask=1)
    log_p = write.call("torch.log_softmax", write.input(), dim=-1)
    log_q = write.call(
        "torch.nn.functional.log_softmax", write.input("teacher"), dim=-1, _stacklevel=3, dtype=None
    )
    gap = write.call("operator.sub", log_p, write.method("detach", log_q))
    divergence = write.method("sum", write.call("operator.mul", write.method("exp", log_p), gap), dim=-1)
    chosen = write.call("operator.getitem", divergence, write.call("operator.gt", write.input("mask"), 0))
    best = write.call("getattr", write.method("max", write.input(), dim=1), "values")
    loss = write.call("operator.add", write.method("sum", chosen), write.method("mean", best))
    return write.returns(loss, {"custom/kl:sum": write.method("sum", divergence)})


def soft_targets_in_torch(lp: Tensor, teacher: Tensor, mask: Tensor) -> Any:
    log_p, log_q = lp.log_softmax(-1), teacher.log_softmax(-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
    return divergence[mask > 0].sum() + lp.max(1).values.mean(), {"custom/kl:sum": divergence.sum()}


def segments() -> GraphWriter:
    """Sums by segment, ids as integers, a scale that is one number, functions of torch.nn and special."""
    write = GraphWriter(logprobs=1, ids=1, scale=0)
    zeros = write.method("new_zeros", write.input(), 3)
    sums = write.method("index_add", zeros, 0, write.input("ids"), write.input())
    hinge = write.call("torch.nn.functional.relu", write.call("operator.add", sums, 2.0), inplace=False)
    squashed = write.call("torch._C._special.special_expit", hinge)
    pairs = write.call(
        "operator.sub",
        write.call("operator.getitem", squashed, {"tuple": [slice_of(), None]}),
        write.call("operator.getitem", squashed, {"tuple": [None, {"ellipsis": True}]}),
    )
    padded = write.call("torch.nn.functional.pad", pairs, {"tuple": [1, 0]}, mode="constant", value=None)
    total = write.method("sum", write.call("torch.functional.einsum", "ij,ij->i", padded, padded))
    return write.returns(write.call("operator.mul", total, write.input("scale")))


def segments_in_torch(lp: Tensor, ids: Tensor, scale: Tensor) -> Any:
    sums = lp.new_zeros(3).index_add(0, ids, lp)
    squashed = torch.special.expit(F.relu(sums + 2.0))
    padded = F.pad(squashed[:, None] - squashed[None, ...], (1, 0))
    return torch.einsum("ij,ij->i", padded, padded).sum() * scale, {}


TWINS: list[tuple[Callable[[], GraphWriter], Callable[..., Any]]] = [
    (clipped_policy_gradient, clipped_policy_gradient_in_torch),
    (smoothness, smoothness_in_torch),
    (soft_targets, soft_targets_in_torch),
    (segments, segments_in_torch),
]


def random_inputs(write: GraphWriter, length: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        name: torch.randn((length, 4)[:rank], generator=generator) for name, rank in write.ranks.items()
    }
    inputs["logprobs"] = -inputs["logprobs"].abs() - 0.1
    if "mask" in inputs:
        inputs["mask"] = (inputs["mask"] > 0).float()
    if "ids" in inputs:
        inputs["ids"] = torch.randint(0, 3, (length,), generator=generator)
    return inputs


@pytest.mark.parametrize(("make", "function"), TWINS, ids=lambda each: each.__name__)
def test_a_graph_computes_loss_gradient_and_metrics_of_the_function(
    make: Callable[[], GraphWriter], function: Callable[..., Any]
):
    program = compiled(make())
    for seed, length in enumerate((2, 7, 7, 40)):
        inputs = random_inputs(make(), length, seed)
        logprobs = inputs.pop("logprobs")
        got = program.evaluate(logprobs, inputs, differentiate=True)
        leaf = logprobs.clone().requires_grad_()
        loss, metrics = function(leaf, *inputs.values())
        loss.backward()
        assert got.loss == pytest.approx(loss.item(), abs=1e-5)
        assert got.gradient is not None
        torch.testing.assert_close(got.gradient, leaf.grad, atol=1e-6, rtol=1e-5)
        assert got.metrics == {name: pytest.approx(each.item(), abs=1e-5) for name, each in metrics.items()}


def test_looking_at_a_loss_computes_no_gradient_and_changes_no_input():
    logprobs, bonus = torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 3.0])
    got = compiled(weighted_square()).evaluate(logprobs, {"bonus": bonus}, differentiate=False)
    assert (got.loss, got.gradient) == (13.0, None)
    assert got.metrics == {"custom/lp:mean": -1.5, "custom/square:sum": 13.0}
    assert logprobs.tolist() == [-1.0, -2.0]


def test_words_for_the_device_mean_wherever_the_logprobs_are():
    write = GraphWriter()
    moved = write.method("to", write.input(), {"device": "cpu"})
    moved = write.method("to", write.method("cpu", moved), "cpu")
    moved = write.method("to", moved, write.call("getattr", moved, "device"), {"dtype": "float64"})
    ones = write.call("torch.ones", {"tuple": [2]}, device=None, dtype={"dtype": "float32"})
    program = compiled(write.returns(write.method("sum", write.call("operator.mul", moved, ones))))
    assert program.evaluate(torch.tensor([-1.0, -2.0]), {}, differentiate=True).loss == -3.0


# ---- what is refused when it is sent ----


def node_of(op: str, target: str, *args: Any, **kwargs: Any) -> GraphWriter:
    """A graph with this node, whose sum is the loss."""
    write = GraphWriter(logprobs=1, weights=1)
    made = write.node(op, target, *args, **kwargs)
    return write.returns(write.method("sum", made))


LP = {"ref": "logprobs"}
NESTED: Any = [1]
for _ in range(12):
    NESTED = [NESTED]

BAD_NODES: list[tuple[str, GraphWriter, str]] = [
    ("unknown function", node_of("call_function", "os.system", LP), "not an operation that this server runs"),
    ("unknown method", node_of("call_method", "frobnicate", LP), r"node 'n2' \(call_method 'frobnicate'\)"),
    ("private method", node_of("call_method", "__reduce_ex__", LP, 2), "not an operation"),
    ("in place", node_of("call_method", "add_", LP, 1), "changes a tensor in place; use add"),
    (
        "in place by option",
        node_of("call_function", "torch.nn.functional.relu", LP, inplace=True),
        "its inplace is True; it must be False",
    ),
    (
        "in place by position",
        node_of("call_function", "torch.nn.functional.relu", LP, True),
        "its inplace is True",
    ),
    ("into another", node_of("call_function", "torch.exp", LP, out=LP), "has no parameter 'out'"),
    ("a file", node_of("call_function", "torch.load", "x"), "not an operation"),
    ("a hook", node_of("call_method", "register_hook", LP, LP), "not an operation"),
    ("random", node_of("call_function", "torch.rand_like", LP), "draws random numbers"),
    ("dropout", node_of("call_function", "torch.nn.functional.dropout", LP, 0.5), "draws random numbers"),
    ("unwritten memory", node_of("call_function", "torch.empty_like", LP), "memory that nobody wrote"),
    ("out of torch", node_of("call_method", "item", LP), "leaves torch"),
    ("a captured tensor", node_of("get_attr", "_tensor_constant0"), "captures a tensor"),
    ("a module", node_of("call_module", "layer", LP), "calls a module"),
    ("an attribute", node_of("call_function", "getattr", LP, "__class__"), "is the text '__class__'"),
    ("a hidden attribute", node_of("call_function", "getattr", LP, "grad_fn"), "is the text 'grad_fn'"),
    (
        "an attribute whose name is computed",
        node_of("call_function", "getattr", LP, LP),
        "its attribute is .*; it must be a text",
    ),
    ("text as a number", node_of("call_function", "operator.mul", "a" * 99, 10**6), "no text is taken there"),
    ("text to format", node_of("call_function", "operator.mod", "%99999999d", 1), "no text is taken there"),
    ("text inside", node_of("call_function", "torch.stack", [LP, "x"]), "is the text 'x'"),
    ("a device", node_of("call_method", "to", LP, "cuda:0"), "is the text 'cuda:0'"),
    ("a device by name", node_of("call_method", "to", LP, device="meta"), "its device is 'meta'"),
    ("a wrong word", node_of("call_function", "torch.div", LP, 2, rounding_mode="up"), "may be one of"),
    ("too few arguments", node_of("call_function", "torch.maximum", LP), "lacks its argument 'other'"),
    ("too many", node_of("call_function", "torch.exp", LP, 1), "takes at most 1 positional arguments"),
    ("an option", node_of("call_method", "sum", LP, dims=0), "has no parameter 'dims'"),
    ("twice", node_of("call_method", "sum", LP, 0, dim=0), "given by position as well"),
    ("no tensor", node_of("call_method", "sum", 3), "the tensor that it is called on"),
    ("no such node", node_of("call_function", "torch.exp", {"ref": "n99"}), "there is none of that name"),
    ("itself", node_of("call_function", "torch.exp", {"ref": "n2"}), "not computed before it"),
    ("a later node", node_of("call_function", "torch.exp", {"ref": "n3"}), "not computed before it"),
    ("a huge integer", node_of("call_function", "operator.mul", LP, 2**64), "more than 64 bits"),
    ("infinity", node_of("call_function", "operator.mul", LP, math.inf), "infinity and NaN are written"),
    ("a strange float", node_of("call_function", "operator.mul", LP, {"float": "1e9"}), "none that this"),
    ("a strange dtype", node_of("call_method", "to", LP, {"dtype": "complex64"}), "none that this server"),
    ("two keys", node_of("call_function", "torch.exp", {"ref": "logprobs", "x": 1}), "none that this server"),
    ("code", node_of("call_function", "torch.exp", {"code": "1"}), "none that this server understands"),
    ("depth", node_of("call_function", "operator.getitem", LP, NESTED), "nested 8 deep"),
    ("many constants", node_of("call_function", "operator.getitem", LP, [0] * 20_000), "room for 16384"),
    # found by taking each step without data
    ("a dimension", node_of("call_method", "sum", LP, 3), r"n2' \(sum\): Dimension out of range"),
    ("a rank", node_of("call_function", "torch.mm", LP, LP), r"n2' \(torch.mm\): .*2"),
    ("two of three", node_of("call_function", "torch.where", LP, LP), "lacks its argument 'other'"),
    ("a type", node_of("call_function", "torch.stack", LP), "torch.stack"),
]


@pytest.mark.parametrize(
    ("write", "message"), [each[1:] for each in BAD_NODES], ids=[e[0] for e in BAD_NODES]
)
def test_a_node_that_cannot_run_is_refused_when_it_is_sent_by_name(write: GraphWriter, message: str):
    with pytest.raises(BadRequest, match=message) as caught:
        compiled(write)
    assert "custom loss 'mine'" in str(caught.value)
    assert len(str(caught.value)) < 600


def without(write: GraphWriter, *numbers: int) -> GraphWriter:
    for number in sorted(numbers, reverse=True):
        del write.nodes[number]
    return write


def of_inputs(**ranks: int) -> GraphWriter:
    write = GraphWriter(**ranks)
    return write.returns(write.method("sum", write.input(next(iter(ranks)))))


def returning(loss: Any, metrics: Any = None) -> GraphWriter:
    write = GraphWriter(logprobs=1, weights=1)
    write.call("operator.add", 1, 2)
    return write.returns(loss, metrics)


def renamed(write: GraphWriter, number: int, name: str) -> GraphWriter:
    write.nodes[number]["name"] = name
    return write


def swapped() -> GraphWriter:
    write = node_of("call_method", "exp", LP)
    write.nodes[0], write.nodes[1] = write.nodes[1], write.nodes[0]
    return write


def after_the_output() -> GraphWriter:
    write = node_of("call_method", "exp", LP)
    write.method("exp", LP)
    return write


BAD_GRAPHS: list[tuple[str, GraphWriter, str]] = [
    ("no nodes", GraphWriter(logprobs=1), "it has no output node"),
    ("no output", without(node_of("call_method", "exp", LP), 4), "it has no output node"),
    (
        "a missing placeholder",
        without(node_of("call_method", "exp", LP), 1),
        "placeholder of input 'weights'",
    ),
    ("placeholders in another order", swapped(), "placeholder of input 'logprobs' is wanted"),
    ("nodes after the output", after_the_output(), "nodes follow the output"),
    ("one name twice", renamed(node_of("call_method", "exp", LP), 3, "n2"), "an earlier node of this name"),
    (
        "a strange name",
        renamed(node_of("call_method", "exp", LP), 2, "a b"),
        "letters, digits and underscores",
    ),
    ("other inputs first", of_inputs(weights=1, logprobs=1), "first input must be logprobs"),
    ("logprobs as a number", of_inputs(logprobs=0), "of rank 1 or 2"),
    ("a strange input", of_inputs(logprobs=1, Weights=1), "'Weights' must be a lowercase name"),
    ("too many inputs", of_inputs(logprobs=1, **{f"x{i}": 1 for i in range(16)}), "takes 1 to 16"),
    ("a number for a loss", returning(1.0), "the loss must be computed"),
    ("metrics that are none", returning(LP, [1]), "argument {'dict': \\[1\\]} is none that"),
    ("a loss that is not a number", returning(LP), r"must be one number .* shape"),
    ("a loss without logprobs", returning({"ref": "weights"}), "does not depend on logprobs"),
    ("a metric's name", returning(LP, {"loss:sum": LP}), "must be named custom/<name>:sum"),
    ("a metric's reduction", returning(LP, {"custom/x:max": LP}), "must be named custom/<name>:sum"),
    ("a metric that is given", returning(LP, {"custom/x:sum": 1.0}), "must be computed, and is 1.0"),
]


@pytest.mark.parametrize(("write", "message"), [e[1:] for e in BAD_GRAPHS], ids=[e[0] for e in BAD_GRAPHS])
def test_a_graph_of_the_wrong_form_is_refused(write: GraphWriter, message: str):
    with pytest.raises(BadRequest, match=message):
        compiled(write)


def test_a_graph_of_too_many_nodes_is_refused():
    write = GraphWriter()
    value = write.input()
    for _ in range(1024):
        value = write.call("operator.add", value, 1)
    with pytest.raises(BadRequest, match="it has 1027 nodes; this server runs 1 to 1024"):
        compiled(write.returns(write.method("sum", value)))


def test_a_step_that_works_for_some_dtypes_or_lengths_is_not_refused():
    """Dtypes and lengths come with the data, so only what fails for all of them is wrong."""
    write = GraphWriter(logprobs=1, ids=1, half=1)
    chosen = write.call("operator.getitem", write.input(), write.input("ids"))  # ids must be integers
    mean = write.method("mean", write.input("half"))  # ... and this no integer
    short = write.call("operator.mul", write.call("operator.getitem", chosen, slice_of(0, 2)), mean)
    program = compiled(write.returns(write.method("sum", short)))
    inputs = {"ids": torch.tensor([2, 0, 0]), "half": torch.tensor([2.0, 4.0])}
    assert program.evaluate(torch.tensor([-1.0, -2.0, -3.0]), inputs, differentiate=True).loss == -12.0


# ---- what is refused when it runs ----


def run(write: GraphWriter, length: int = 4, max_values: int = PLENTY, **inputs: Tensor) -> Any:
    inputs.setdefault("weights", torch.ones(length))
    return compiled(write, max_values).evaluate(-torch.ones(length), inputs, differentiate=True)


BIG = 10**9
GREEDY: list[tuple[str, GraphWriter]] = [
    ("expand", node_of("call_method", "expand", {"ref": "n9"}, BIG, -1)),
    ("repeat", node_of("call_method", "repeat", LP, BIG)),
    ("arange", node_of("call_function", "torch.arange", BIG)),
    ("zeros", node_of("call_function", "torch.zeros", {"tuple": [BIG, 4]})),
    ("full", node_of("call_function", "torch.full", {"tuple": [BIG]}, 1.0)),
    ("new_zeros", node_of("call_method", "new_zeros", LP, BIG)),
    ("pad", node_of("call_function", "torch.nn.functional.pad", LP, {"tuple": [BIG, 0]})),
    ("tile", node_of("call_function", "torch.tile", LP, {"tuple": [BIG]})),
    ("repeat_interleave", node_of("call_method", "repeat_interleave", LP, BIG)),
    ("one_hot", node_of("call_function", "torch._C._nn.one_hot", {"ref": "n9"}, BIG)),
    ("eye", node_of("call_function", "torch.eye", 10**5)),
    ("linspace", node_of("call_function", "torch.linspace", 0, 1, BIG)),
    ("histc", node_of("call_method", "histc", LP, BIG)),
]
PAIRS = ("dist", "nn.functional.mse_loss", "nn.functional.kl_div", "linalg.vecdot")
"""Functions whose results are small, and what they compute on the way is not."""


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of sizes that differ
@pytest.mark.parametrize("name", PAIRS)
def test_what_broadcasting_makes_on_the_way_to_a_small_result_counts(name: str):
    write = GraphWriter()
    values = write.method("repeat", write.input(), 4000)
    pairs = (write.method("unsqueeze", values, 1), write.method("unsqueeze", values, 0))
    graph = write.returns(write.method("sum", write.call(f"torch.{name}", *pairs)))
    with pytest.raises(BadRequest, match="up to here the graph computes"):
        run(graph)


@pytest.mark.parametrize(("name", "write"), GREEDY, ids=[each[0] for each in GREEDY])
def test_what_would_fill_the_memory_is_refused_before_it_is_made(name: str, write: GraphWriter):
    wanted = write.nodes[2]
    before = {"op": "call_method", "name": "n9", "target": "long", "args": [LP], "kwargs": {}}
    if name == "one_hot":
        before["target"] = "bool"
        before = {**before, "target": "long"}
    write.nodes.insert(2, before)
    loss = write.nodes[-2]
    # Added to the logprobs, so that the loss depends on them whatever the greedy node makes.
    write.nodes[-1]["args"][0]["tuple"][0] = {"ref": "both"}
    write.nodes[-1:-1] = [
        {"op": "call_method", "name": "total", "target": "sum", "args": [LP], "kwargs": {}},
        {
            "op": "call_function",
            "name": "both",
            "target": "operator.add",
            "args": [{"ref": loss["name"]}, {"ref": "total"}],
            "kwargs": {},
        },
    ]
    with pytest.raises(BadRequest, match=f"{wanted['name']}.*up to here the graph computes"):
        run(write)


def test_a_tensor_is_not_cut_into_more_parts_than_memory_holds():
    write = GraphWriter()
    places = write.call("torch.arange", 150_000)
    parts = write.method("unbind", places)
    graph = write.returns(
        write.method(
            "sum", write.call("operator.mul", write.input(), write.call("operator.getitem", parts, 0))
        )
    )
    with pytest.raises(BadRequest, match=r"\(unbind\): up to here the graph computes 19500000 values"):
        run(graph)


def test_products_that_grow_step_by_step_are_refused():
    write = GraphWriter()
    value = write.input()
    for _ in range(4):
        column = write.method("unsqueeze", write.method("reshape", value, -1), 1)
        value = write.call("operator.mul", column, write.input())
    with pytest.raises(BadRequest, match=r"operator.mul\): up to here the graph computes"):
        run(write.returns(write.method("sum", value)), length=200)


def test_work_inside_a_product_of_matrices_counts():
    write = GraphWriter()
    square = write.method("outer", write.input(), write.input())
    for _ in range(4):
        square = write.call("operator.matmul", square, square)
    graph = write.returns(write.method("sum", square))
    assert run(graph, length=4).loss == 4**17
    with pytest.raises(BadRequest, match=r"operator.matmul\): up to here"):
        run(graph, length=1000, max_values=2**25)


@pytest.mark.parametrize(
    ("target", "args"),
    [("operator.pow", [7, 10**6]), ("operator.lshift", [1, 10**6]), ("operator.mul", [2**62, 4])],
)
def test_numbers_are_bounded_too(target: str, args: list[int]):
    write = GraphWriter()
    number = write.call(target, *args)
    graph = write.returns(write.method("sum", write.call("operator.mul", write.input(), number)))
    with pytest.raises(BadRequest, match="64 bits"):
        run(graph)


def test_sequences_are_not_multiplied():
    write = GraphWriter()
    many = write.call("operator.mul", {"tuple": [1, 2]}, 10**6)
    with pytest.raises(BadRequest, match="mul is for tensors and numbers, not for a tuple"):
        run(write.returns(write.method("sum", write.call("operator.getitem", write.input(), many))))


def test_repeats_that_another_tensor_says_are_bounded():
    write = GraphWriter(logprobs=1, weights=1)
    repeated = write.method("repeat_interleave", write.input(), write.input("weights"))
    graph = write.returns(write.method("sum", repeated))
    assert run(graph, weights=torch.tensor([2, 0, 1, 1])).loss == -4.0
    with pytest.raises(BadRequest, match=r"repeat_interleave.*up to here the graph computes 4000000000"):
        run(graph, weights=torch.tensor([10**9, 0, 0, 0]))


def test_a_result_that_is_not_finite_is_refused():
    write = GraphWriter(logprobs=1, weights=1)
    graph = write.returns(
        write.method("sum", write.method("log", write.call("operator.mul", write.input(), LP)))
    )
    assert run(graph).loss == 0.0
    write = GraphWriter(logprobs=1, weights=1)
    root = write.method("sqrt", write.call("operator.mul", write.input(), write.input("weights")))
    with pytest.raises(BadRequest, match="the loss is nan"):
        run(write.returns(write.method("sum", root)))
    weights = torch.tensor([-1.0, -1.0, 0.0, -1.0])
    with pytest.raises(BadRequest, match=r"its gradient is .* at position 2"):
        run(write, weights=weights)


def test_a_loss_that_no_gradient_reaches_is_refused():
    write = GraphWriter()
    graph = write.returns(write.method("sum", write.method("detach", write.input())))
    with pytest.raises(BadRequest, match="no gradient reaches logprobs"):
        run(graph)


def test_a_step_that_fails_on_the_data_is_named():
    write = GraphWriter(logprobs=1, weights=1)
    graph = write.returns(write.method("dot", write.input(), write.input("weights")))
    with pytest.raises(BadRequest, match=r"custom loss 'mine': node 'n2' \(dot\): .*4.*3"):
        run(graph, weights=torch.ones(3))
