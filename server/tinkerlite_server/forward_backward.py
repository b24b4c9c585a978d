"""One forward_backward request on its way: cut into slices, its outputs put together again.

Losses are sums, so the gradients of the slices add up to those of the request. Cutting keeps
every engine call short, however large the request, so that others get their turn.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from tinkerlite.types import ForwardBackwardOutput, TensorData
from tinkerlite.wire import encode_forward_backward_output
from tinkerlite_server.engine.protocols import TrainBatch, TrainOutput


class Progress:
    """How far a batch has come."""

    def __init__(self, batch: TrainBatch) -> None:
        self._batch = batch
        self._sizes = [len(example.tokens) for example in batch.examples]
        self._done = 0
        self._outputs: list[tuple[TrainOutput, int]] = []

    @property
    def remaining_tokens(self) -> int:
        """Tokens of the examples that have not been run."""
        return sum(self._sizes[self._done :])

    @property
    def finished(self) -> bool:
        """Whether every example has been run."""
        return self._done == len(self._sizes)

    def cut(self, tokens: int) -> TrainBatch:
        """The next examples, of at most so many tokens in all, but at least one."""
        end, total = self._done + 1, self._sizes[self._done]
        while end < len(self._sizes) and total + self._sizes[end] <= tokens:
            total += self._sizes[end]
            end += 1
        batch = self._batch
        return replace(batch, examples=batch.examples[self._done : end])

    def add(self, output: TrainOutput) -> None:
        """Take in the output of the slice that was cut last."""
        count = len(output.logprobs)
        self._outputs.append((output, count))
        self._done += count

    def locate(self, message: str) -> str:
        """An engine's message about the slice cut last, whose datums it counts from 0."""
        return message if self._done == 0 else f"in data[{self._done}:], counted from 0: {message}"

    def result(self) -> bytes:
        """The answer to the whole request, encoded."""
        outputs = [datum for output, _ in self._outputs for datum in _datums(output)]
        metrics = combine_metrics([(output.metrics, count) for output, count in self._outputs])
        return encode_forward_backward_output(ForwardBackwardOutput("ArrayRecord", outputs, metrics))


def _datums(output: TrainOutput) -> list[dict[str, TensorData]]:
    """Arrays by name, datum by datum."""
    datums = [{"logprobs": TensorData(lp)} for lp in output.logprobs]
    if output.elementwise_loss is not None:
        for datum, loss in zip(datums, output.elementwise_loss, strict=True):
            datum["elementwise_loss"] = TensorData(per_position(loss))
    return datums


def per_position(loss: np.ndarray) -> np.ndarray:
    """(N,) losses of positions: a position with K targets has one loss, the sum over them."""
    return loss.sum(axis=-1, dtype=np.float32) if loss.ndim == 2 else loss


def combine_metrics(parts: list[tuple[dict[str, float], int]]) -> dict[str, float]:
    """Metrics of several parts of one batch, by the reduction that each name ends in.

    `:sum`, `:min` and `:max` are what they say, `:mean` is weighted by datums. These are the
    rules by which clients combine chunks, so cutting changes no figure.

    Args:
        parts: the metrics of each part, and how many datums it had.
    """
    combined: dict[str, float] = {}
    for name in parts[0][0]:
        values = [metrics[name] for metrics, _ in parts]
        reduction = name.rpartition(":")[2]
        if reduction == "sum":
            combined[name] = math.fsum(values)
        elif reduction == "min":
            combined[name] = min(values)
        elif reduction == "max":
            combined[name] = max(values)
        elif reduction == "mean":
            weights = [count for _, count in parts]
            combined[name] = math.fsum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
        else:
            raise ValueError(f"metric {name!r} ends in no known reduction")
    return combined
