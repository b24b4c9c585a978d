"""Writes the graphs of custom losses by hand, in the form in which torch.fx and the SDK send them."""

from __future__ import annotations

from typing import Any

from tinkerlite_server.engine.protocols import LossGraph, LossInput, LossNode

JSON = dict[str, Any]


class GraphWriter:
    """A function's steps, one call after the other. Every method returns a reference to its value.

    Args:
        ranks: of the inputs, in the order in which the function takes them; logprobs first.
    """

    def __init__(self, **ranks: int) -> None:
        self.ranks = ranks or {"logprobs": 1}
        self.nodes: list[JSON] = [
            {"op": "placeholder", "name": name, "target": name, "args": [], "kwargs": {}}
            for name in self.ranks
        ]

    def input(self, name: str = "logprobs") -> JSON:
        return {"ref": name}

    def node(self, op: str, target: str, *args: Any, **kwargs: Any) -> JSON:
        name = f"n{len(self.nodes)}"
        self.nodes.append({"op": op, "name": name, "target": target, "args": list(args), "kwargs": kwargs})
        return {"ref": name}

    def call(self, target: str, *args: Any, **kwargs: Any) -> JSON:
        return self.node("call_function", target, *args, **kwargs)

    def method(self, target: str, *args: Any, **kwargs: Any) -> JSON:
        return self.node("call_method", target, *args, **kwargs)

    def returns(self, loss: Any, metrics: JSON | None = None) -> GraphWriter:
        returned = {"tuple": [loss, {"dict": metrics or {}}]}
        self.nodes.append({"op": "output", "name": "output", "target": "output", "args": [returned]})
        return self

    def graph(self, name: str = "mine") -> LossGraph:
        """For the engine."""
        return LossGraph(
            loss_id="loss",
            name=name,
            inputs=[LossInput(name=each, rank=rank) for each, rank in self.ranks.items()],  # type: ignore[arg-type]
            nodes=[LossNode(**node) for node in self.nodes],
        )

    def body(self, session_id: str, number: int = 0, name: str = "mine") -> JSON:
        """For the route."""
        return {
            "session_id": session_id,
            "custom_loss_seq_id": number,
            "name": name,
            "inputs": [{"name": each, "rank": rank} for each, rank in self.ranks.items()],
            "graph": {"format": 1, "nodes": self.nodes},
            "type": "create_custom_loss",
        }


def weighted_square() -> GraphWriter:
    """L = sum bonus * lp^2, with a mean and a sum to look at."""
    write = GraphWriter(logprobs=1, bonus=1)
    square = write.call("operator.pow", write.input(), 2)
    weighted = write.call("operator.mul", write.input("bonus"), square)
    loss = write.method("sum", weighted)
    mean = write.method("mean", write.input())
    return write.returns(loss, {"custom/lp:mean": mean, "custom/square:sum": loss})
