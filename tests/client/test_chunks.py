"""Cutting large batches, and putting their results together again."""

from __future__ import annotations

import numpy as np

from tinkerlite.chunking import combine_outputs, size_bytes, split_into_chunks
from tinkerlite.types import Datum, ForwardBackwardOutput, ImageChunk, ModelInput, TensorData


def datum(length: int) -> Datum:
    return Datum(ModelInput.from_ints([1] * length), {"target_tokens": [1] * length})


def output(datums: int, **metrics: float) -> ForwardBackwardOutput:
    named = {name.replace("__", ":"): value for name, value in metrics.items()}
    arrays = [{"logprobs": TensorData([float(i)])} for i in range(datums)]
    return ForwardBackwardOutput("ArrayRecord", arrays, named)


def test_a_datum_weighs_what_its_tokens_and_arrays_weigh():
    assert size_bytes(datum(10)) == 10 * 4 + 10 * 8
    sparse = TensorData([1.0], "float32", [2, 3], [0, 1, 1], [2])
    seen = ModelInput.from_ints([1]).append(ImageChunk(data=b"12345", format="png"))
    assert size_bytes(Datum(seen, {"weights": sparse})) == (4 + 5) + (4 + 3 * 8 + 8)


def test_chunks_keep_the_order_and_both_limits():
    data = [datum(1), datum(2), datum(3), datum(4), datum(5)]
    by_count = split_into_chunks(data, max_datums=2, max_bytes=10**6)
    assert by_count == [data[:2], data[2:4], data[4:]]
    by_size = split_into_chunks(data, max_datums=10, max_bytes=5 * 12)
    assert by_size == [data[:2], data[2:3], data[3:4], data[4:]]


def test_a_datum_above_the_limit_goes_alone():
    data = [datum(1), datum(100), datum(1)]
    assert split_into_chunks(data, max_datums=10, max_bytes=50) == [data[:1], data[1:2], data[2:]]


def test_metrics_are_combined_as_their_names_say():
    one = output(
        1, loss__sum=1, n__min=3, n__max=3, acc__mean=0.0, load__slack=2, seen__hash2=7, host__unique=1
    )
    other = output(
        3, loss__sum=2, n__min=2, n__max=5, acc__mean=1.0, load__slack=6, seen__hash2=9, host__unique=4
    )
    combined = combine_outputs([one, other]).metrics
    assert combined == {
        "loss:sum": 3,
        "n:min": 2,
        "n:max": 5,
        "acc:mean": 0.75,  # three of the four datums
        "load:slack": 6 - (1 * 2 + 3 * 6) / 4,
        "seen:hash2": 16,
        "host:unique": 1,
        "host:unique_1": 4,
    }


def test_hashes_wrap_around_at_64_bits():
    combined = combine_outputs([output(1, h__hash2=2.0**63), output(1, h__hash2=2.0**63)])
    assert combined.metrics == {"h:hash2": 0}


def test_a_metric_that_cannot_be_combined_is_left_out():
    combined = combine_outputs([output(1, x__mode=1, y=2), output(1, x__mode=1, y=2)])
    assert combined.metrics == {}


def test_a_metric_that_one_chunk_lacks_is_combined_over_the_others():
    combined = combine_outputs([output(1), output(2, acc__mean=0.5), output(2, acc__mean=1.0)])
    assert combined.metrics == {"acc:mean": 0.75}


def test_a_mean_over_no_datums_is_a_plain_mean():
    combined = combine_outputs([output(0, acc__mean=1.0), output(0, acc__mean=2.0)])
    assert combined.metrics == {"acc:mean": 1.5}


def test_a_single_chunk_is_passed_through_whatever_its_metrics_are_called():
    single = output(2, anything=1)
    assert combine_outputs([single]) is single


def test_outputs_follow_each_other():
    combined = combine_outputs([output(2), output(1)])
    values = [each["logprobs"].to_numpy() for each in combined.loss_fn_outputs]
    np.testing.assert_array_equal(values, [[0.0], [1.0], [0.0]])
