from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from cookbook.advantages import group_relative, reverse_kl
from cookbook.mixing import MixedTask, scaled, total
from cookbook.objectives import TokenWeights, added, training_data
from cookbook.tasks import TASKS, with_format_credit
from tests.cookbook.groups import FixedScorer, make_group, make_trajectory

GROUP = make_group(
    make_trajectory(logprobs=[-1.0, -1.0], reward=1.0), make_trajectory(logprobs=[-2.0], reward=0.0)
)


def test_advantages_add_up_token_by_token():
    mixed = total(group_relative, reverse_kl(FixedScorer([-3.0, -0.5], [-2.0]), kl_coef=0.1))
    [[first, second]] = mixed([GROUP])
    assert first == pytest.approx([0.5 - 0.2, 0.5 + 0.05])
    assert second == pytest.approx([-0.5])


def test_of_nothing_there_is_no_total():
    with pytest.raises(ValueError, match="at least one"):
        total()


def test_scaling_keeps_advantages_advantages():
    [[first, _]] = scaled(group_relative, 3.0)([GROUP])
    assert isinstance(first, np.ndarray)
    assert first.tolist() == [1.5, 1.5]
    assert training_data([GROUP], scaled(group_relative, 3.0)([GROUP]))[1] == "importance_sampling"


def test_added_token_weights_share_the_sampled_token_and_keep_their_others():
    [trajectory, _] = GROUP.trajectories
    weights = TokenWeights(np.array([[10, 3], [11, 4]]), np.array([[1.0, 2.0], [3.0, 4.0]], np.float32))
    both = added(trajectory, weights, weights)
    assert isinstance(both, TokenWeights)
    assert both.tokens.tolist() == [[10, 3, 3], [11, 4, 4]]
    assert both.weights.tolist() == [[2.0, 2.0, 2.0], [6.0, 4.0, 4.0]]
    with_advantages = added(trajectory, np.float32([0.5, 0.5]), weights)
    assert isinstance(with_advantages, TokenWeights)
    assert with_advantages.weights.tolist() == [[1.5, 2.0], [3.5, 4.0]]


def test_one_trajectory_with_token_weights_makes_a_batch_of_cross_entropy():
    [trajectory, _] = GROUP.trajectories
    weights = TokenWeights(np.array([[10, 3], [11, 4]]), np.array([[1.0, 2.0], [3.0, 4.0]], np.float32))
    data, loss_fn = training_data([GROUP], [[weights, np.float32([-0.5])]])
    assert loss_fn == "cross_entropy"
    first, second = (datum.loss_fn_inputs for datum in data)
    # Prompt (5, 6): one given position, which weighs nothing.
    assert first["target_tokens"].tolist() == [[6, 6], [10, 3], [11, 4]]
    assert first["weights"].tolist() == [[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]]
    assert second["target_tokens"].tolist() == [[6], [10]]
    assert second["weights"].tolist() == [[0.0], [-0.5]]
    assert data[0].model_input.to_ints() == [5, 6, 10]
    assert len(trajectory.completion_tokens) == 2


# ---- tasks ----


MIXED = MixedTask(tasks={name: with_format_credit(TASKS[name]) for name in ("sums", "larger")})


def test_mixed_tasks_take_turns_and_their_problems_say_whose_they_are():
    problems = list(islice(MIXED.training_problems(0), 4))
    assert [problem.task for problem in problems] == ["sums", "larger"] * 2
    own = next(TASKS["sums"].training_problems(0))
    assert problems[0] == replace(own, task="sums")
    assert MIXED.name == "sums+larger"


def test_held_out_problems_are_shared_out_equally_and_stay_held_out():
    problems = MIXED.held_out(5)
    assert [problem.task for problem in problems] == ["sums", "larger", "sums", "larger", "sums"]
    assert [replace(p, task="") for p in problems if p.task == "sums"] == TASKS["sums"].held_out(3)


def test_each_problem_is_graded_by_its_own_task():
    sums, larger = MIXED.held_out(2)
    assert MIXED.grade(sums, sums.answer).correct
    assert MIXED.grade(larger, "7").reward == pytest.approx(0.2)
