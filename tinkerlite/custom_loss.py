"""Losses that are written in torch on the client's side, of any shape.

    first pass    the server computes log p; the loss C(log p) is differentiated here
    second pass   the server runs cross_entropy = -sum(w * log p) with w = -dC/dlog p,
                  whose gradient at these weights is that of C

Knows nothing about sending.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from tinkerlite.errors import CapabilityError, InvalidDatum, InvalidRequest
from tinkerlite.types import Datum, ForwardBackwardOutput, LossFnInputs, LossFnOutput, TensorData

if TYPE_CHECKING:
    import torch

CustomLossFn = Callable[[list[Datum], "list[torch.Tensor]"], "tuple[torch.Tensor, Mapping[str, float]]"]
"""(data, logprobs) -> (loss, metrics). `logprobs[i]` has the shape of datum i's `target_tokens`, in nats."""


@dataclass(frozen=True)
class LinearisedLoss:
    """What the second pass needs, and what the user's function said."""

    data: list[Datum]
    loss: float
    metrics: dict[str, float]

    def add_to(self, output: ForwardBackwardOutput) -> ForwardBackwardOutput:
        """The second pass's output, with the custom loss in place of its stand-in."""
        metrics = {**output.metrics, **self.metrics, "loss:sum": self.loss}
        if "loss:sum" in output.metrics:
            metrics["surrogate_loss:sum"] = output.metrics["loss:sum"]
        return replace(output, metrics=metrics)


def require_torch() -> None:
    """Raises CapabilityError where torch cannot be imported."""
    try:
        import_module("torch")
    except ImportError as error:
        raise CapabilityError(
            "forward_backward_custom differentiates your loss with torch, which is not installed"
        ) from error


def forward_data(data: Sequence[Datum]) -> list[Datum]:
    """The first pass: the targets alone; the function gets the other inputs, the server does not."""
    return [Datum(datum.model_input, _only_targets(datum.loss_fn_inputs)) for datum in data]


def _only_targets(inputs: LossFnInputs) -> LossFnInputs:
    targets = inputs.get("target_tokens")
    if targets is None:
        return {}  # left for the loss's schema to complain about
    return {"target_tokens": targets, "weights": TensorData(np.zeros(targets.shape, dtype=np.float32))}


def linearise(data: list[Datum], outputs: Sequence[LossFnOutput], loss_fn: CustomLossFn) -> LinearisedLoss:
    """Run the user's function on the first pass's logprobs, and differentiate it.

    Raises:
        InvalidRequest: it did not return a differentiable scalar and a mapping.
        InvalidDatum: its gradient is not finite; names the datum.
    """
    torch: Any = import_module("torch")  # untyped, as it need not be installed
    logprobs = [torch.tensor(output["logprobs"].to_numpy(), requires_grad=True) for output in outputs]
    returned: Any = loss_fn(data, logprobs)
    try:
        loss, metrics = returned
    except (TypeError, ValueError):
        raise InvalidRequest("a custom loss returns two things: (loss, metrics)") from None
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise InvalidRequest("a custom loss must be one number computed from the logprobs with torch")
    loss.sum().backward()  # into whatever else the user trains as well, such as a value head
    weighted: list[Datum] = []
    for index, (datum, scored) in enumerate(zip(data, logprobs, strict=True)):
        targets = datum.loss_fn_inputs["target_tokens"]
        # A datum that the loss does not look at has no gradient.
        weights = np.zeros(targets.shape, np.float32) if scored.grad is None else -scored.grad.numpy()
        if not np.isfinite(weights).all():
            raise InvalidDatum(f"data[{index}]: the gradient of the custom loss is not finite")
        inputs = {"target_tokens": targets, "weights": TensorData(weights)}
        weighted.append(Datum(datum.model_input, inputs))
    return LinearisedLoss(
        weighted, float(loss.detach()), {name: float(value) for name, value in metrics.items()}
    )
