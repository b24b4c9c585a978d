import numpy as np
import pytest

from cookbook.datums import completion_part, policy_datum, supervised_datum
from cookbook.renderers import RenderedExample


def floats(*values: float) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)


def test_a_supervised_datum_scores_each_token_after_the_input_before_it():
    datum = supervised_datum(RenderedExample([7, 8, 9, 2], floats(0, 0, 1, 1)))
    assert datum.model_input.to_ints() == [7, 8, 9]
    assert datum.loss_fn_inputs["target_tokens"].tolist() == [8, 9, 2]
    assert datum.loss_fn_inputs["weights"].tolist() == [0.0, 1.0, 1.0]


def test_a_policy_datum_has_zeros_wherever_tokens_were_given():
    datum = policy_datum([5, 6, 7], [10, 11], floats(-0.5, -0.25), floats(2.0, -1.0))
    assert datum.model_input.to_ints() == [5, 6, 7, 10]
    assert datum.loss_fn_inputs["target_tokens"].tolist() == [6, 7, 10, 11]
    assert datum.loss_fn_inputs["logprobs"].tolist() == [0.0, 0.0, -0.5, -0.25]
    assert datum.loss_fn_inputs["advantages"].tolist() == [0.0, 0.0, 2.0, -1.0]


def test_the_arrays_have_the_dtypes_of_the_wire():
    inputs = policy_datum([5], [10], floats(-0.5), floats(1.0)).loss_fn_inputs
    assert {name: tensor.dtype for name, tensor in inputs.items()} == {
        "target_tokens": "int64",
        "logprobs": "float32",
        "advantages": "float32",
    }


def test_one_token_after_one_token_is_a_datum():
    datum = policy_datum([5], [10], floats(-0.5), floats(1.0))
    assert datum.model_input.to_ints() == [5]
    assert datum.loss_fn_inputs["target_tokens"].tolist() == [10]
    assert datum.loss_fn_inputs["advantages"].tolist() == [1.0]


def test_completion_part_undoes_the_shift():
    datum = policy_datum([5, 6, 7], [10, 11], floats(-0.5, -0.25), floats(2.0, -1.0))
    logprobs = datum.loss_fn_inputs["logprobs"].to_numpy()
    assert completion_part(logprobs, prompt_length=3).tolist() == [-0.5, -0.25]


def test_lengths_that_differ_are_rejected_by_number():
    with pytest.raises(ValueError, match="2 tokens needs as many logprobs and advantages, got 2 and 1"):
        policy_datum([5], [10, 11], floats(-0.5, -0.5), floats(1.0))


@pytest.mark.parametrize(("prompt", "completion"), [([], [1]), ([1], [])])
def test_a_policy_datum_needs_something_to_read_and_something_to_score(
    prompt: list[int], completion: list[int]
):
    values = floats(*([0.0] * len(completion)))
    with pytest.raises(ValueError, match="at least one prompt token and one completion token"):
        policy_datum(prompt, completion, values, values)


def test_a_single_token_is_no_training_example():
    with pytest.raises(ValueError, match="at least two tokens, this one has 1"):
        supervised_datum(RenderedExample([7], floats(1)))
