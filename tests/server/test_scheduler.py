from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.rig import OWNER, Rig
from tinkerlite.wire import decode_forward_backward_output
from tinkerlite_server.errors import BadRequest, EngineFailure, UnknownName
from tinkerlite_server.futures import Done
from tinkerlite_server.operations import Refusal
from tinkerlite_server.sampling_lane import SamplingLane
from tinkerlite_server.settings import Limits


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


# ---- order ----


def test_a_run_executes_by_number_and_not_by_arrival(rig: Rig):
    rig.runs("a")
    rig.optim_step("a", 4)
    rig.forward_backward("a", 3)
    rig.forward_backward("a", 2)
    rig.turn_until_idle()
    assert rig.trained() == []
    rig.forward_backward("a", 1)
    rig.turn_until_idle()
    assert rig.trained() == ["forward_backward a"] * 3 + ["optim_step a"]


def test_operations_may_be_sent_before_their_run_has_been_made(rig: Rig):
    made = rig.create("a")
    step = rig.optim_step("a", 1)
    rig.turn_until_idle()
    assert rig.answer(made)["model_id"] == "a"
    assert rig.answer(step)["metrics"]["step"] == 1.0


def test_a_refused_number_holds_nothing_up(rig: Rig):
    rig.runs("a")
    step = rig.optim_step("a", 2)
    rig.refuse("a", 1)
    rig.turn_until_idle()
    assert isinstance(rig.outcome(step), Done)


def test_an_operation_for_a_run_that_does_not_exist_is_refused(rig: Rig):
    with pytest.raises(UnknownName, match="'nobody' is not in memory"):
        rig.optim_step("nobody", 1)


def test_a_run_cannot_be_made_twice(rig: Rig):
    rig.runs("a")
    rig.store.delete_run("a")
    with pytest.raises(BadRequest, match="exists already"):
        rig.create("a")


def test_what_waits_behind_a_number_that_never_comes_fails_in_the_end(rig: Rig):
    rig.runs("a")
    stranded = [rig.forward_backward("a", 2), rig.optim_step("a", 3)]
    rig.clock.now += rig.limits.gap_seconds
    rig.scheduler.give_up_gaps()
    for request_id in stranded:
        failure = rig.failure(request_id)
        assert "operation 1 of 'a' did not arrive within 360 s" in failure.message
        assert failure.category == "unknown"
    later = rig.forward_backward("a", 4)
    rig.turn_until_idle()
    assert isinstance(rig.outcome(later), Done)


def test_someone_elses_refusal_does_not_touch_a_run(rig: Rig):
    rig.runs("a")
    rig.forward_backward("a", 2)
    refusal = Refusal(model_id="a", seq_id=1, reason="mischief", loses_gradients=True)
    rig.scheduler.refuse(refusal, "you")
    rig.turn_until_idle()
    assert rig.trained() == []


# ---- several runs ----


def test_forward_backwards_of_different_runs_are_merged_into_one_call(rig: Rig):
    rig.runs("a", "b", "c")
    for model_id in ("a", "b", "c"):
        rig.forward_backward(model_id, 1)
    rig.scheduler.turn()
    assert rig.trained() == ["forward_backward a b c"]


def test_a_merged_call_gives_each_run_what_it_would_have_got_alone(rig: Rig, tmp_path: Path):
    rig.runs("a", "b")
    for model_id in ("a", "b"):
        rig.forward_backward(model_id, 1, datums=2)
    rig.turn_until_idle()
    alone = Rig(tmp_path / "alone")
    alone.runs("a")
    alone.forward_backward("a", 1, datums=2)
    alone.turn_until_idle()
    for model_id in ("a", "b"):
        assert np.array_equal(rig.engine.run(model_id).gradient, alone.engine.run("a").gradient)


def test_two_requests_of_one_run_are_never_merged(rig: Rig):
    rig.runs("a")
    rig.forward_backward("a", 1)
    rig.forward_backward("a", 2)
    rig.turn_until_idle()
    assert rig.trained() == ["forward_backward a", "forward_backward a"]


def test_only_one_base_model_loss_and_direction_goes_into_a_call(rig: Rig):
    rig.create("teacher", base_model="teacher")
    rig.runs("a", "b", "c", "d")
    rig.forward_backward("a", 1)
    rig.forward_backward("teacher", 1)
    rig.forward_backward("b", 1, loss_fn="importance_sampling")
    rig.forward_backward("c", 1, forward_only=True)
    rig.forward_backward("d", 1)
    rig.turn_until_idle()
    assert sorted(rig.trained()) == [
        "forward_backward a d",
        "forward_backward b",
        "forward_backward c",
        "forward_backward teacher",
    ]


def test_runs_take_turns_however_much_each_has_queued(rig: Rig):
    rig.runs("a", "b")
    for seq in (1, 2, 3):
        rig.optim_step("a", seq)
    rig.optim_step("b", 1)
    rig.turn_until_idle()
    assert rig.trained().index("optim_step b") <= 1


def test_a_large_request_is_cut_so_that_others_get_their_turn(tmp_path: Path):
    rig = Rig(tmp_path, Limits(turn_tokens=6))  # two datums of three tokens
    rig.runs("large", "small")
    large = rig.forward_backward("large", 1, datums=5)
    small = rig.optim_step("small", 1)
    rig.scheduler.turn()
    assert rig.outcome(large) is None
    rig.scheduler.turn()
    assert isinstance(rig.outcome(small), Done)
    rig.turn_until_idle()
    assert rig.trained().count("forward_backward large") == 3
    assert isinstance(rig.outcome(large), Done)


def test_cutting_a_request_changes_neither_gradients_nor_answer(tmp_path: Path):
    answers, gradients = [], []
    for turn_tokens in (6, 1000):
        rig = Rig(tmp_path / str(turn_tokens), Limits(turn_tokens=turn_tokens))
        rig.runs("a")
        request_id = rig.forward_backward("a", 1, datums=5)
        rig.turn_until_idle()
        outcome = rig.outcome(request_id)
        assert isinstance(outcome, Done)
        answers.append(decode_forward_backward_output(outcome.body))
        gradients.append(rig.engine.run("a").gradient)
    cut, whole = answers
    assert cut.loss_fn_outputs == whole.loss_fn_outputs
    assert cut.metrics == pytest.approx(whole.metrics)
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-12)


# ---- failure ----


def test_a_failed_operation_fails_alone(rig: Rig):
    rig.runs("a")
    rig.engine.failures["forward_backward of a"] = BadRequest("datum 0 is odd")
    failed = rig.forward_backward("a", 1, forward_only=True)
    fine = [rig.forward_backward("a", 2), rig.optim_step("a", 3)]
    rig.turn_until_idle()
    assert rig.failure(failed).category == "user"
    assert all(isinstance(rig.outcome(request_id), Done) for request_id in fine)


def test_one_failing_batch_of_a_merged_call_leaves_the_others_alone(rig: Rig):
    rig.runs("a", "b")
    rig.engine.failures["forward_backward of a"] = EngineFailure("out of memory")
    failed, fine = rig.forward_backward("a", 1), rig.forward_backward("b", 1)
    rig.turn_until_idle()
    assert rig.failure(failed).message == "out of memory"
    assert rig.failure(failed).category == "server"
    assert isinstance(rig.outcome(fine), Done)


def test_no_step_is_taken_on_part_of_a_batch(rig: Rig):
    rig.runs("a")
    rig.engine.failures["forward_backward of a"] = BadRequest("datum 0 is odd")
    rig.forward_backward("a", 1)
    rest, step = rig.forward_backward("a", 2), rig.optim_step("a", 3)
    rig.turn_until_idle()
    assert isinstance(rig.outcome(rest), Done)
    failure = rig.failure(step)
    assert failure.message.startswith("no step was taken")
    assert "forward_backward 1 failed: datum 0 is odd" in failure.message
    assert failure.category == "user"
    assert rig.engine.run("a").steps == 0
    assert not rig.engine.run("a").gradient.any()


def test_after_a_step_that_was_not_taken_the_next_batch_trains_again(rig: Rig):
    rig.runs("a")
    rig.engine.failures["forward_backward of a"] = BadRequest("datum 0 is odd")
    rig.forward_backward("a", 1)
    rig.optim_step("a", 2)
    rig.forward_backward("a", 3)
    step = rig.optim_step("a", 4)
    rig.turn_until_idle()
    assert rig.answer(step)["metrics"]["step"] == 1.0


def test_a_step_that_fails_drops_the_gradients_that_it_was_for(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: Any) -> dict[str, float]:
        raise RuntimeError("out of memory")

    rig.runs("a")
    monkeypatch.setattr(rig.engine, "optim_step", fails)
    rig.forward_backward("a", 1)
    failed = rig.optim_step("a", 2)
    rig.turn_until_idle()
    assert rig.failure(failed).category == "server"
    assert not rig.engine.run("a").gradient.any()


def test_no_step_is_taken_after_a_refused_forward_backward_either(rig: Rig):
    rig.runs("a")
    step = rig.optim_step("a", 2)
    rig.refuse("a", 1, loses_gradients=True)
    rig.turn_until_idle()
    assert "forward_backward 1 was refused: data is empty" in rig.failure(step).message


def test_gradients_from_before_a_failed_forward_pass_are_kept(rig: Rig):
    rig.runs("a")
    rig.forward_backward("a", 1)
    rig.refuse("a", 2, loses_gradients=False)
    step = rig.optim_step("a", 3)
    rig.turn_until_idle()
    assert rig.answer(step)["metrics"]["grad_norm"] > 0


def test_a_defect_in_the_engine_is_the_servers_failure_and_the_next_operation_runs(
    rig: Rig, caplog: pytest.LogCaptureFixture
):
    rig.runs("a")
    rig.engine.failures["forward_backward"] = ZeroDivisionError("oops")
    failed, fine = rig.forward_backward("a", 1, forward_only=True), rig.forward_backward("a", 2)
    rig.turn_until_idle()
    assert rig.failure(failed).message == "forward_backward failed on the server: ZeroDivisionError: oops"
    assert rig.failure(failed).category == "server"
    assert isinstance(rig.outcome(fine), Done)
    assert "ZeroDivisionError" in caplog.text


def test_everything_sent_to_a_run_that_could_not_be_made_fails_with_the_reason(rig: Rig):
    rig.engine.failures["create_run"] = EngineFailure("the weights are corrupt")
    made = rig.create("a")
    later = rig.forward_backward("a", 1)
    rig.turn_until_idle()
    assert rig.failure(made).message == "the weights are corrupt"
    assert rig.failure(later).message == "training run 'a' could not be made: the weights are corrupt"
    assert rig.failure(later).category == "server"
    assert rig.store.find_run("a") is None


def test_what_waits_in_a_run_that_is_freed_fails(rig: Rig):
    rig.runs("a")
    waiting = rig.forward_backward("a", 2)
    rig.scheduler.free_run("a", "its session ended")
    rig.turn_until_idle()
    assert rig.failure(waiting).message == "training run 'a' has ended: its session ended"
    assert rig.verbs() == ["drop_run a"]


def test_a_run_may_end_while_one_of_its_operations_runs(rig: Rig, caplog: pytest.LogCaptureFixture):
    rig.runs("a", "b")
    rig.engine.gate.clear()
    rig.scheduler.start()
    running = rig.forward_backward("a", 1)
    assert rig.engine.entered.wait(30.0)
    rig.scheduler.free_run("a", "its session ended")
    other = rig.forward_backward("b", 1)
    rig.engine.gate.set()
    assert isinstance(asyncio.run(rig.futures.wait(other, "me", 30.0)), Done)
    assert rig.failure(running).message == "training run 'a' has ended: its session ended"
    assert rig.scheduler.stop(30.0)
    assert caplog.text == ""


# ---- sampling ----


def test_a_sample_runs_to_its_end(rig: Rig):
    request_id = rig.sample(max_tokens=3)
    rig.turn_until_idle()
    assert isinstance(rig.outcome(request_id), Done)
    assert rig.verbs("step") == ["step"] * 3


def test_sampling_and_training_take_turns(rig: Rig):
    rig.runs("a")
    rig.sample(max_tokens=3)
    for seq in (1, 2, 3):
        rig.optim_step("a", seq)
    rig.turn_until_idle()
    assert rig.verbs("step", "optim_step") == ["optim_step a", "step"] * 3


def test_sampling_goes_on_for_as_long_as_training_took(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    rig.runs("a")
    step, optim_step = rig.engine.step, rig.engine.optim_step

    def slow(seconds: float, call):
        def called(*args):
            rig.clock.now += seconds
            return call(*args)

        return called

    monkeypatch.setattr(rig.engine, "step", slow(1.0, step))
    monkeypatch.setattr(rig.engine, "optim_step", slow(3.0, optim_step))
    rig.sample(max_tokens=8)
    rig.optim_step("a", 1)
    rig.optim_step("a", 2)
    rig.turn_until_idle()
    assert rig.verbs("step", "optim_step") == ["optim_step a", *["step"] * 3] * 2 + ["step"] * 2


def test_a_sampling_step_that_fails_ends_its_requests_and_no_others(
    rig: Rig, caplog: pytest.LogCaptureFixture
):
    rig.engine.failures["step"] = RuntimeError("the device is lost")
    failed = rig.sample()
    rig.turn_until_idle()
    assert rig.failure(failed).category == "server"
    assert "the device is lost" in rig.failure(failed).message
    fine = rig.sample()
    rig.turn_until_idle()
    assert isinstance(rig.outcome(fine), Done)


def test_a_request_that_cannot_start_fails_alone(rig: Rig):
    missing, fine = rig.sample(adapter_id="never made"), rig.sample()
    rig.turn_until_idle()
    assert rig.failure(missing).category == "user"
    assert isinstance(rig.outcome(fine), Done)


def test_a_cancelled_request_stops_whether_it_waits_or_runs(tmp_path: Path):
    rig = Rig(tmp_path, Limits(sampler_window=1))
    running, waiting = rig.sample(max_tokens=30), rig.sample()
    rig.scheduler.turn()
    for request_id in (running, waiting):
        rig.scheduler.cancel_sample(request_id)
        assert rig.failure(request_id).message == "the request was cancelled"
    rig.turn_until_idle()
    assert rig.verbs("submit", "cancel") == [f"submit {running}", f"cancel {running}"]


def test_cancelling_a_training_operation_does_nothing(rig: Rig):
    rig.runs("a")
    request_id = rig.optim_step("a", 1)
    rig.scheduler.cancel_sample(request_id)
    rig.turn_until_idle()
    assert isinstance(rig.outcome(request_id), Done)


# ---- snapshots ----


def test_a_run_keeps_its_last_snapshots_and_says_so_when_one_had_to_go(tmp_path: Path):
    rig = Rig(tmp_path, Limits(snapshots_per_run=2))
    rig.runs("a")
    for seq, name in enumerate(["first", "second", "third"], start=1):
        rig.snapshot("a", seq, name)
    rig.turn_until_idle()
    first = rig.store.find_sampler("first")
    assert first is not None
    assert first.ended is not None
    assert "save_weights_for_sampler(name)" in first.ended
    assert [rig.engine.has_adapter(name) for name in ("first", "second", "third")] == [False, True, True]


def test_the_snapshot_that_goes_is_the_one_not_sampled_from(tmp_path: Path):
    rig = Rig(tmp_path, Limits(snapshots_per_run=2))
    rig.runs("a")
    rig.snapshot("a", 1, "reference")
    rig.snapshot("a", 2, "second")
    rig.turn_until_idle()
    rig.sample(adapter_id="reference")
    rig.turn_until_idle()
    rig.snapshot("a", 3, "third")
    rig.turn_until_idle()
    assert [rig.engine.has_adapter(name) for name in ("reference", "second", "third")] == [True, False, True]


def test_a_snapshot_with_queued_requests_is_never_let_go(tmp_path: Path):
    rig = Rig(tmp_path, Limits(snapshots_per_run=1, sampler_window=1))
    rig.runs("a")
    rig.snapshot("a", 1, "old")
    rig.turn_until_idle()
    requests = [rig.sample(adapter_id="old") for _ in range(3)]
    rig.snapshot("a", 2, "new")
    rig.turn_until_idle()
    assert all(isinstance(rig.outcome(request_id), Done) for request_id in requests)


# ---- the thread ----


def test_the_thread_sleeps_until_there_is_work_and_stops_when_told(rig: Rig):
    others = set(threading.enumerate())
    rig.scheduler.start()
    request_id = rig.create("a")
    assert isinstance(asyncio.run(rig.futures.wait(request_id, "me", 30.0)), Done)
    assert rig.scheduler.stop(30.0)
    assert "engine" not in {thread.name for thread in set(threading.enumerate()) - others}


def test_requests_that_came_side_by_side_are_waited_for_the_next_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
):
    """The first of several prompts must not be read alone; who sends one at a time waits for nobody."""

    resting, rest = threading.Event(), SamplingLane.rest
    monkeypatch.setattr(SamplingLane, "rest", lambda lane: (rest(lane), resting.set()))

    def finish(*requests: str) -> list[str]:
        for request_id in requests:
            assert isinstance(asyncio.run(rig.futures.wait(request_id, "me", 30.0)), Done)
        assert resting.wait(30.0)  # what comes before that still belongs to those
        resting.clear()
        verbs, rig.engine.calls = rig.verbs("submit", "step"), []
        return verbs

    monkeypatch.setattr("tinkerlite_server.sampling_lane.GATHER_SECONDS", 30.0)
    together = [rig.sample(max_tokens=1) for _ in range(2)]
    rig.scheduler.start()
    finish(*together)
    first = rig.sample(max_tokens=1)
    time.sleep(0.1)
    assert rig.verbs("submit", "step") == []
    second = rig.sample(max_tokens=1)
    assert finish(first, second) == [f"submit {first}", f"submit {second}", "step"]
    monkeypatch.setattr("tinkerlite_server.sampling_lane.GATHER_SECONDS", 0.01)
    finish(rig.sample(max_tokens=1))
    monkeypatch.setattr("tinkerlite_server.sampling_lane.GATHER_SECONDS", 30.0)
    finish(rig.sample(max_tokens=1))
    assert rig.scheduler.stop(30.0)


def test_a_busy_engine_does_not_hold_up_acceptance(rig: Rig):
    rig.runs("a")
    rig.engine.gate.clear()
    rig.scheduler.start()
    first = rig.forward_backward("a", 1)
    second = rig.forward_backward("a", 2)
    assert rig.engine.entered.wait(30.0)
    assert rig.outcome(first) is rig.outcome(second) is None
    assert rig.scheduler.why_waiting(second) == "operations of a ahead of it: 1"
    assert not rig.scheduler.stop(0.01)
    rig.engine.gate.set()
    assert rig.scheduler.stop(30.0)


def test_a_snapshot_that_could_not_be_recorded_is_let_go_of(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    rig.runs("a")

    def locked(_: object) -> None:
        raise OSError("database is locked")

    monkeypatch.setattr(rig.store, "add_sampler", locked)
    late = rig.snapshot("a", 1, "late")
    rig.turn_until_idle()
    assert "database is locked" in rig.failure(late).message
    assert not rig.engine.has_adapter("late")


def test_a_snapshot_that_is_made_just_as_its_session_ends_is_let_go_of(rig: Rig):
    rig.store.add_session("sess", OWNER, tags=[], user_metadata={})
    rig.runs("a")
    take = rig.engine.snapshot

    def end_and_take(model_id: str, adapter_id: str) -> None:
        rig.store.end_session("sess", "it was closed")
        take(model_id, adapter_id)

    rig.engine.snapshot = end_and_take
    late = rig.snapshot("a", 1, "late")
    rig.turn_until_idle()
    assert "it was closed" in rig.failure(late).message
    assert not rig.engine.has_adapter("late")
    assert rig.store.find_sampler("late") is None
