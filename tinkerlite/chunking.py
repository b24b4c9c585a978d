"""Batches too large for one request: cut into chunks, and their results put together again.

Knows sizes and the reduction that each metric's name ends with. Knows nothing about sending.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tinkerlite.types import Datum, DmelChunk, EncodedTextChunk, ForwardBackwardOutput, ImageChunk

_BYTES_PER_TOKEN = 4
_HASH_MODULUS = 2**64


def split_into_chunks(data: Sequence[Datum], max_datums: int, max_bytes: int) -> list[list[Datum]]:
    """Cut a batch, in order, so that each chunk keeps both limits.

    A datum that alone is larger than `max_bytes` gets a chunk of its own.
    """
    chunks: list[list[Datum]] = []
    size = 0
    for datum in data:
        datum_bytes = size_bytes(datum)
        if not chunks or len(chunks[-1]) == max_datums or size + datum_bytes > max_bytes:
            chunks.append([])
            size = 0
        chunks[-1].append(datum)
        size += datum_bytes
    return chunks


def size_bytes(datum: Datum) -> int:
    """About how many bytes a datum takes on the wire."""
    size = 0
    for chunk in datum.model_input.chunks:
        if isinstance(chunk, ImageChunk):
            size += len(chunk.data)
        elif isinstance(chunk, DmelChunk):
            size += len(chunk.dmel)
        elif isinstance(chunk, EncodedTextChunk):
            size += _BYTES_PER_TOKEN * len(chunk.tokens)
    for tensor in datum.loss_fn_inputs.values():
        size += tensor.values.nbytes
        if tensor.crow_indices is not None and tensor.col_indices is not None:
            size += tensor.crow_indices.nbytes + tensor.col_indices.nbytes
    return size


def combine_outputs(outputs: Sequence[ForwardBackwardOutput]) -> ForwardBackwardOutput:
    """The output of a whole batch from those of its chunks, in order.

    A metric is combined as the part of its name after the colon says, over the chunks that
    report it; of an unknown way to combine nothing can be said, and the metric is left out.
    """
    if len(outputs) == 1:
        return outputs[0]
    metrics: dict[str, float] = {}
    for name in dict.fromkeys(name for output in outputs for name in output.metrics):
        reporting = [output for output in outputs if name in output.metrics]
        values = [output.metrics[name] for output in reporting]
        reduction = name.rpartition(":")[2]
        if reduction == "unique":  # cannot be combined: all are kept
            metrics.update({name if i == 0 else f"{name}_{i}": value for i, value in enumerate(values)})
        elif reduction in _REDUCTIONS:
            datums = [len(output.loss_fn_outputs) for output in reporting]
            metrics[name] = _REDUCTIONS[reduction](values, datums)
    return ForwardBackwardOutput(
        loss_fn_output_type=outputs[0].loss_fn_output_type,
        loss_fn_outputs=[datum_output for output in outputs for datum_output in output.loss_fn_outputs],
        metrics=metrics,
    )


def _mean(values: Sequence[float], datums: Sequence[int]) -> float:
    """Weighted by the number of datums; plain where no chunk has any."""
    if not sum(datums):
        return sum(values) / len(values)
    return sum(value * count for value, count in zip(values, datums, strict=True)) / sum(datums)


_REDUCTIONS: dict[str, Callable[[Sequence[float], Sequence[int]], float]] = {
    "sum": lambda values, _: sum(values),
    "min": lambda values, _: min(values),
    "max": lambda values, _: max(values),
    "mean": _mean,
    "slack": lambda values, datums: max(values) - _mean(values, datums),
    "hash2": lambda values, _: sum(int(value) for value in values) % _HASH_MODULUS,
}
