"""Losses that are written on the client's side, of any shape: in torch, or with their own gradients.

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
from numpy.typing import NDArray

from tinkerlite.errors import CapabilityError, InvalidDatum, InvalidRequest
from tinkerlite.types import Datum, ForwardBackwardOutput, LossFnInputs, LossFnOutput, TensorData

if TYPE_CHECKING:
    import torch

CustomLossFn = Callable[[list[Datum], "list[torch.Tensor]"], "tuple[torch.Tensor, Mapping[str, float]]"]
"""(data, logprobs) -> (loss, metrics). `logprobs[i]` has the shape of datum i's `target_tokens`, in nats."""


NumpyLossFn = Callable[
    [list[Datum], "list[NDArray[np.float32]]"],
    "tuple[float, Sequence[NDArray[np.floating]], Mapping[str, float]]",
]
"""(data, logprobs) -> (loss, gradients, metrics): for each datum dC/dlog p, shaped like its logprobs."""


@dataclass(frozen=True)
class NumpyLoss:
    """A loss that brings its own gradient, so that torch is not needed.

    def fn(data, logprobs):
        loss = sum((lp**2).sum() for lp in logprobs)
        return loss, [2 * lp for lp in logprobs], {}

    training.forward_backward_custom(data, NumpyLoss(fn))
    """

    fn: NumpyLossFn


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


def linearise(
    data: list[Datum], outputs: Sequence[LossFnOutput], loss_fn: CustomLossFn | NumpyLoss
) -> LinearisedLoss:
    """Run the user's function on the first pass's logprobs, and differentiate it, unless it did that.

    Raises:
        InvalidRequest: it did not return what it should.
        InvalidDatum: its gradient is not finite, or of another shape; names the datum.
    """
    if isinstance(loss_fn, NumpyLoss):
        return _linearised_by_itself(data, outputs, loss_fn)
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
    # A datum that the loss does not look at has no gradient.
    gradients = [np.zeros(lp.shape, np.float32) if lp.grad is None else lp.grad.numpy() for lp in logprobs]
    return _linearised(data, float(loss.detach()), gradients, metrics)


def _linearised_by_itself(
    data: list[Datum], outputs: Sequence[LossFnOutput], loss_fn: NumpyLoss
) -> LinearisedLoss:
    returned: Any = loss_fn.fn(data, [output["logprobs"].to_numpy().copy() for output in outputs])
    try:
        loss, gradients, metrics = returned
        value, count = float(loss), len(gradients)
    except (TypeError, ValueError):
        raise InvalidRequest("a NumpyLoss returns three things: (loss, gradients, metrics)") from None
    if count != len(data):
        raise InvalidRequest(f"a NumpyLoss returns one gradient a datum: {len(data)}, not {count}")
    return _linearised(data, value, gradients, metrics)


def _linearised(
    data: list[Datum], loss: float, gradients: Sequence[Any], metrics: Mapping[str, float]
) -> LinearisedLoss:
    weighted: list[Datum] = []
    for index, (datum, gradient) in enumerate(zip(data, gradients, strict=True)):
        targets = datum.loss_fn_inputs["target_tokens"]
        weights = -np.asarray(gradient, dtype=np.float32)
        if list(weights.shape) != targets.shape:
            raise InvalidDatum(
                f"data[{index}]: the gradient of the custom loss has shape {list(weights.shape)}, "
                f"its targets have {targets.shape}"
            )
        if not np.isfinite(weights).all():
            raise InvalidDatum(f"data[{index}]: the gradient of the custom loss is not finite")
        inputs = {"target_tokens": targets, "weights": TensorData(weights)}
        weighted.append(Datum(datum.model_input, inputs))
    return LinearisedLoss(weighted, loss, {name: float(value) for name, value in metrics.items()})
