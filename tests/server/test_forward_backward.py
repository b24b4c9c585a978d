from __future__ import annotations

import numpy as np
import pytest

from tinkerlite.wire import decode_forward_backward_output
from tinkerlite_server.engine.protocols import Example, TrainBatch, TrainOutput
from tinkerlite_server.forward_backward import Progress, combine_metrics, per_position


def batch(*lengths: int) -> TrainBatch:
    examples = [Example(np.arange(n), np.arange(n), {}) for n in lengths]
    return TrainBatch(model_id="run", examples=examples, loss_fn="cross_entropy", loss_config={})


def output(cut: TrainBatch) -> TrainOutput:
    """Logprobs and losses that tell which example they are of: its length."""
    arrays = [np.full(len(each.tokens), -float(len(each.tokens)), np.float32) for each in cut.examples]
    return TrainOutput(arrays, [-each for each in arrays], {"loss:sum": float(-sum(a.sum() for a in arrays))})


def lengths(cut: TrainBatch) -> list[int]:
    return [len(each.tokens) for each in cut.examples]


def test_a_request_is_cut_into_slices_that_fit():
    progress = Progress(batch(3, 4, 5, 6))
    cuts: list[list[int]] = []
    while not progress.finished:
        cut = progress.cut(9)
        cuts.append(lengths(cut))
        progress.add(output(cut))
    assert cuts == [[3, 4], [5], [6]]


def test_an_example_larger_than_a_slice_gets_one_of_its_own():
    assert lengths(Progress(batch(50, 1)).cut(9)) == [50]


def test_the_answer_is_that_of_the_whole_request():
    progress = Progress(batch(3, 4, 5))
    assert progress.remaining_tokens == 12
    while not progress.finished:
        progress.add(output(progress.cut(7)))
    whole = decode_forward_backward_output(progress.result())
    assert [datum["logprobs"].tolist() for datum in whole.loss_fn_outputs] == [
        [-3.0] * 3,
        [-4.0] * 4,
        [-5.0] * 5,
    ]
    assert whole.metrics == {"loss:sum": 9.0 + 16.0 + 25.0}


def test_a_failure_in_a_later_slice_says_where_its_count_begins():
    progress = Progress(batch(3, 4))
    assert progress.locate("datum 0 is odd") == "datum 0 is odd"
    progress.add(output(progress.cut(3)))
    assert progress.locate("datum 0 is odd") == "in data[1:], counted from 0: datum 0 is odd"


def test_a_position_with_many_targets_has_one_loss():
    assert per_position(np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)).tolist() == [3.0, 7.0]
    assert per_position(np.array([1.0, 2.0], np.float32)).tolist() == [1.0, 2.0]


def test_metrics_of_slices_combine_by_the_reduction_in_their_name():
    parts = [
        ({"loss:sum": 1.0, "kl:mean": 1.0, "ratio:max": 3.0, "ratio:min": 0.5}, 1),
        ({"loss:sum": 2.0, "kl:mean": 4.0, "ratio:max": 2.0, "ratio:min": 0.7}, 3),
    ]
    assert combine_metrics(parts) == {"loss:sum": 3.0, "kl:mean": 3.25, "ratio:max": 3.0, "ratio:min": 0.5}


def test_a_metric_without_a_known_reduction_is_a_defect():
    with pytest.raises(ValueError, match="loss"):
        combine_metrics([({"loss": 1.0}, 1)])
