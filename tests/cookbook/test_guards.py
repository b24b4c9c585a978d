"""Signs of collapse, on rows made by hand: each is found, and what resembles it is left alone."""

from typing import Any

import pytest

from cookbook.guards import PATIENCE, RunStopped, sign_of_collapse
from cookbook.loop import finish_row
from cookbook.metrics import Row

HEALTHY: dict[str, Any] = {
    "reward": 0.4,
    "rollout_accuracy": 0.4,
    "truncated_fraction": 0.1,
    "distinct_prompts": 8,
    "distinct_completions": 20,
    "completion_tokens": 100,
    "entropy": 0.8,
    "reverse_kl": 0.5,
    "logprob_difference_mean": 1e-6,
    "staleness_max": 0,
    "optimizer_grad_norm": 2.0,
}


def run(*changes: dict[str, Any], healthy: int = 6) -> list[Row]:
    """So many healthy steps, and then one for each of the changes."""
    steps = [*[{}] * healthy, *changes]
    return [HEALTHY | change | {"step": step} for step, change in enumerate(steps)]


def test_a_healthy_run_shows_no_sign():
    assert sign_of_collapse(run()) is None


@pytest.mark.parametrize(
    ("change", "says", "advises"),
    [
        ({"distinct_completions": 1}, "every completion is the same", "earlier checkpoint"),
        (
            {"entropy": 0.001, "rollout_accuracy": 0.1, "reverse_kl": 2.0},
            "entropy is 0.0010 nats a token, and 10% of the rollouts are right",
            "group_size",
        ),
        ({"truncated_fraction": 1.0}, "100% of the completions are cut, where once 10% were", "max_tokens"),
        (
            {"reverse_kl": 4.0},
            "KL to the teacher is 4.00 nats a token, after 0.50 at step 0",
            "learning_rate",
        ),
        ({"optimizer_grad_norm": 900.0}, "gradient norm is 900", "learning_rate"),
        ({"logprob_difference_mean": 0.5}, "differ by 0.50 nats a token", "tinkerlite doctor"),
    ],
)
def test_a_sign_counts_when_it_has_held_for_several_steps(change: dict[str, Any], says: str, advises: str):
    assert sign_of_collapse(run(*[change] * (PATIENCE - 1))) is None
    found = sign_of_collapse(run(*[change] * PATIENCE))
    assert found is not None
    assert says in found
    assert advises in found


@pytest.mark.parametrize(
    "change",
    [
        # The same words for every prompt are right where they are right.
        {"distinct_completions": 1, "rollout_accuracy": 1.0},
        # One prompt has one answer.
        {"distinct_completions": 1, "distinct_prompts": 1},
        # A student that knows the answers is sure of them,
        {"entropy": 0.001, "rollout_accuracy": 0.9, "reverse_kl": 3.0},
        # and one that follows its teacher is as sure as the teacher, right or wrong.
        {"entropy": 0.001, "rollout_accuracy": 0.0, "reverse_kl": 0.01},
        # RL leaves a teacher that it only watches, if that pays.
        {"reverse_kl": 5.0, "reward": 0.9},
        # Samples that are known to be older than the weights differ from them.
        {"logprob_difference_mean": 0.5, "staleness_max": 2},
        # Longer completions have larger gradients.
        {"optimizer_grad_norm": 900.0, "completion_tokens": 6000},
    ],
)
def test_what_only_looks_like_collapse_does_not_stop_a_run(change: dict[str, Any]):
    assert sign_of_collapse(run(*[change] * (PATIENCE + 2))) is None


def test_short_rollouts_that_were_always_cut_are_no_collapse():
    rows = [HEALTHY | {"step": step, "truncated_fraction": 1.0} for step in range(9)]
    assert sign_of_collapse(rows) is None


@pytest.mark.parametrize("short", [range(9), range(4, 9), range(6)], ids=["always", "later", "at first"])
def test_rollouts_that_are_short_on_purpose_may_all_be_cut(short: range):
    rows = [
        HEALTHY
        | {"step": step, "truncated_fraction": 0.4 if step < 6 else 1.0}
        | ({"short_on_purpose": True} if step in short else {})
        for step in range(9)
    ]
    assert sign_of_collapse(rows) is None


@pytest.mark.parametrize(
    "change",
    [
        {"distinct_completions": 1, "rollout_accuracy": 0.0},
        {"entropy": 0.001, "rollout_accuracy": 0.0, "reverse_kl": 2.0},
    ],
)
def test_beginnings_may_all_be_the_same_and_none_of_them_is_right(change: dict[str, Any]):
    assert sign_of_collapse(run(*[change] * PATIENCE)) is not None
    assert sign_of_collapse(run(*[change | {"short_on_purpose": True}] * PATIENCE)) is None


def test_supervised_gradients_are_compared_by_the_token_as_well():
    rows = [{"step": step, "optimizer_grad_norm": 1.0, "trained_tokens": 10} for step in range(6)]
    rows += [{"step": step, "optimizer_grad_norm": 500.0, "trained_tokens": 1000} for step in range(6, 9)]
    assert sign_of_collapse(rows) is None
    few = [row | {"trained_tokens": 10} for row in rows]
    assert "gradient norm is 500" in (sign_of_collapse(few) or "")


def test_a_teacher_that_is_measured_now_and_then_may_still_agree_with_a_student_that_is_sure():
    sure = {"entropy": 0.001, "rollout_accuracy": 0.0, "reverse_kl": None}
    agrees = [HEALTHY | {"reverse_kl": 0.01, "rollout_accuracy": 0.0, "step": step} for step in range(3)]
    assert sign_of_collapse([*agrees, *run(*[sure] * 5, healthy=0)]) is None
    disagrees = [HEALTHY | {"reverse_kl": 2.0, "rollout_accuracy": 0.0, "step": step} for step in range(3)]
    assert "sure of wrong answers" in (sign_of_collapse([*disagrees, *run(*[sure] * 5, healthy=0)]) or "")


def test_gradients_that_were_zero_say_nothing_about_what_is_large():
    rows = [HEALTHY | {"step": step, "optimizer_grad_norm": 0.0 if step < 6 else 2.0} for step in range(9)]
    assert sign_of_collapse(rows) is None


def test_a_kl_that_is_measured_now_and_then_is_judged_by_its_measurements():
    sparse = [
        {"reverse_kl": None if step % 2 else 0.5 if step < 6 else 5.0, "step": step, "reward": 0.0}
        for step in range(11)
    ]
    assert sign_of_collapse(sparse[:9]) is None
    assert "KL to the teacher is 5.00" in (sign_of_collapse(sparse) or "")


def test_a_supervised_loss_that_explodes_is_a_sign():
    losses = [2.0, 1.0, 0.5, 4.0, 5.0, 6.0]
    rows = [{"step": step, "loss_per_token": loss} for step, loss in enumerate(losses)]
    assert sign_of_collapse(rows[:-1]) is None
    assert "the loss is 6.00 nats a token, after 0.50" in (sign_of_collapse(rows) or "")


def test_one_figure_that_is_not_finite_is_enough_and_is_named():
    rows = [{"step": 0, "loss": 1.0, "kl_by_position": {"0": 0.1, "1": float("nan")}}]
    assert sign_of_collapse(rows) == (
        "no finite number: kl_by_position/1. Lower learning_rate, and clip advantages that are huge"
    )


def test_a_run_that_is_told_to_go_on_records_the_sign_and_goes_on():
    recorded: list[Row] = []
    rows: list[Row] = []
    finish_row({"step": 0, "loss": float("inf")}, rows, recorded.append, stop=False)
    [row] = recorded
    assert row["loss"] is None
    assert row["collapse"].startswith("no finite number: loss.")
    assert "stopped" not in row
    assert rows == recorded


def test_the_last_row_of_a_run_that_was_stopped_says_why():
    recorded: list[Row] = []
    with pytest.raises(RunStopped, match="step 0: no finite number"):
        finish_row({"step": 0, "loss": float("inf")}, [], recorded.append, stop=True)
    with pytest.raises(RunStopped, match="step 0: too long"):
        finish_row({"step": 0}, [], recorded.append, stop=False, reason="too long")
    assert [row["stopped"][:8] for row in recorded] == ["no finit", "too long"]
