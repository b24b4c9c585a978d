from __future__ import annotations

import pytest

from tinkerlite.types import AdamParams
from tinkerlite_server.errors import BadRequest, Busy
from tinkerlite_server.operations import UNNUMBERED, Operation, OptimStep, Refusal
from tinkerlite_server.run_queue import RunQueue


def queue(*arrived: int) -> RunQueue:
    """A run that exists, and the operations that arrived for it, in this order."""
    waiting = RunQueue("run", "me", "toy", first_seq=1)
    for seq in arrived:
        waiting.put(operation(seq), now=0.0, limit=100)
    return waiting


def operation(seq: int) -> Operation:
    return OptimStep(request_id=f"r{seq}", model_id="run", seq_id=seq, params=AdamParams())


def refusal(seq: int, *, loses_gradients: bool = False) -> Refusal:
    return Refusal(model_id="run", seq_id=seq, reason="empty data", loses_gradients=loses_gradients)


def run_all(waiting: RunQueue) -> list[str]:
    """Request ids in the order in which they come up."""
    ran: list[str] = []
    while (head := waiting.head()) is not None:
        ran.append(head.request_id)
        waiting.advance(now=0.0)
    return ran


@pytest.mark.parametrize("arrived", [(1, 2, 3, 4, 5), (2, 3, 4, 1, 5), (5, 4, 3, 2, 1)])
def test_operations_run_in_the_order_of_their_numbers_however_they_arrive(arrived: tuple[int, ...]):
    assert run_all(queue(*arrived)) == ["r1", "r2", "r3", "r4", "r5"]


def test_an_early_operation_waits_for_those_before_it():
    waiting = queue(2, 3)
    assert waiting.head() is None
    assert waiting.why_waiting("r3") == "operation 3 of run waits for 1, which has not arrived"
    waiting.put(operation(1), now=0.0, limit=100)
    assert run_all(waiting) == ["r1", "r2", "r3"]


def test_a_refused_number_is_passed_over():
    waiting = queue(1, 3)
    waiting.refuse(refusal(2), now=0.0)
    assert run_all(waiting) == ["r1", "r3"]


def test_a_number_refused_ahead_of_its_turn_is_passed_over_when_it_comes():
    waiting = queue()
    waiting.refuse(refusal(2), now=0.0)
    waiting.put(operation(3), now=0.0, limit=100)
    assert waiting.head() is None
    waiting.put(operation(1), now=0.0, limit=100)
    assert run_all(waiting) == ["r1", "r3"]


def test_gradients_count_as_lost_only_once_the_refused_number_is_due():
    waiting = queue(1)
    waiting.refuse(refusal(2, loses_gradients=True), now=0.0)
    assert waiting.lost_gradients is None
    waiting.advance(now=0.0)
    assert waiting.lost_gradients is not None
    assert "forward_backward 2 was refused: empty data" in waiting.lost_gradients.reason


def test_refusing_a_number_that_is_queued_or_past_changes_nothing():
    waiting = queue(1, 2)
    waiting.advance(now=0.0)
    waiting.refuse(refusal(1, loses_gradients=True), now=0.0)
    waiting.refuse(refusal(2, loses_gradients=True), now=0.0)
    assert run_all(waiting) == ["r2"]
    assert waiting.lost_gradients is None


@pytest.mark.parametrize("used", [1, 2])
def test_a_number_that_ran_or_waits_cannot_be_used_again(used: int):
    waiting = queue(1, 2)
    waiting.advance(now=0.0)
    with pytest.raises(BadRequest, match=f"seq_id {used} .*the next to run is 2"):
        waiting.put(operation(used), now=0.0, limit=100)


def test_an_operation_without_a_number_takes_the_next():
    waiting = queue(1, 2)
    waiting.put(operation(UNNUMBERED), now=0.0, limit=100)
    waiting.put(operation(UNNUMBERED), now=0.0, limit=100)
    assert run_all(waiting) == ["r1", "r2", "r-1", "r-1"]
    assert waiting.next_seq == 5


def test_too_many_waiting_operations_are_turned_away_for_now():
    waiting = queue(1, 2)
    with pytest.raises(Busy, match="2 operations"):
        waiting.put(operation(3), now=0.0, limit=2)


def test_a_full_queue_takes_the_operation_that_it_waits_for():
    waiting = queue(2, 3)
    with pytest.raises(Busy):
        waiting.put(operation(4), now=0.0, limit=2)
    waiting.put(operation(1), now=0.0, limit=2)
    assert run_all(waiting) == ["r1", "r2", "r3"]


def test_a_gap_is_given_up_after_a_while_and_takes_what_waited_behind_it():
    waiting = queue(2, 3)
    assert waiting.give_up_gap(now=359.0, after_seconds=360.0) == (0, [])
    missing, stranded = waiting.give_up_gap(now=360.0, after_seconds=360.0)
    assert missing == 1
    assert [each.request_id for each in stranded] == ["r2", "r3"]
    waiting.put(operation(4), now=360.0, limit=100)
    assert run_all(waiting) == ["r4"]
    assert waiting.lost_gradients is not None


def test_a_gap_is_timed_from_when_it_began_to_hold_something_up():
    waiting = queue(1)
    waiting.advance(now=100.0)
    waiting.put(operation(3), now=200.0, limit=100)
    assert waiting.give_up_gap(now=500.0, after_seconds=360.0) == (0, [])
    assert waiting.give_up_gap(now=560.0, after_seconds=360.0)[0] == 2


def test_a_gap_waits_longer_by_as_long_as_the_server_stood_still():
    waiting = queue(2)
    waiting.wait_longer(1000.0)
    assert waiting.give_up_gap(now=1359.0, after_seconds=360.0) == (0, [])
    assert waiting.give_up_gap(now=1360.0, after_seconds=360.0)[0] == 1


def test_a_run_without_a_gap_never_gives_up():
    waiting = queue(1, 2)
    assert waiting.give_up_gap(now=1e9, after_seconds=360.0) == (0, [])
