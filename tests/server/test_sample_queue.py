from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tinkerlite_server.engine.protocols import SampleWork
from tinkerlite_server.errors import Busy
from tinkerlite_server.operations import Sample
from tinkerlite_server.sample_queue import SampleQueue


def sample(
    key: str,
    owner: str = "me",
    *,
    num_samples: int = 1,
    base_model: str = "toy",
    adapter_id: str | None = None,
) -> Sample:
    work = SampleWork(
        key=key,
        base_model=base_model,
        adapter_id=adapter_id,
        prompt=np.array([1]),
        num_samples=num_samples,
        max_tokens=1,
        seeds=(0,) * num_samples,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        stop_ids=frozenset(),
    )
    return Sample(owner=owner, work=work, folder=None)


def queue(*samples: Sample, window: int = 2, limit: int = 100) -> SampleQueue:
    waiting = SampleQueue(window=window, limit=limit)
    for each in samples:
        waiting.put(each)
    return waiting


def admitted(waiting: SampleQueue) -> list[str]:
    return [each.request_id for each in waiting.admit()]


def test_requests_are_handed_over_up_to_the_window():
    waiting = queue(sample("a"), sample("b"), sample("c"))
    assert admitted(waiting) == ["a", "b"]
    assert admitted(waiting) == []
    waiting.finish("a")
    assert admitted(waiting) == ["c"]


def test_callers_take_turns_however_much_each_has_queued():
    many = [sample(f"mine{i}", "me") for i in range(4)]
    waiting = queue(*many, sample("yours0", "you"), sample("yours1", "you"), window=100)
    assert admitted(waiting) == ["mine0", "yours0", "mine1", "yours1", "mine2", "mine3"]


def test_a_caller_of_large_requests_gets_no_more_samples_than_one_of_small_ones():
    large = [sample(f"mine{i}", "me", num_samples=8) for i in range(4)]
    small = [sample(f"yours{i}", "you") for i in range(12)]
    waiting = queue(*large, *small, window=16)
    handed_over = admitted(waiting)
    assert handed_over[:2] == ["mine0", "yours0"]
    assert len([name for name in handed_over if name.startswith("yours")]) == 8
    waiting.finish("mine1" if "mine1" in handed_over else "mine0")
    assert admitted(waiting)


def test_base_models_have_windows_of_their_own():
    waiting = queue(sample("a"), sample("b"), sample("c"), sample("d", base_model="teacher"))
    assert sorted(admitted(waiting)) == ["a", "b", "d"]


def test_a_request_larger_than_the_window_goes_alone():
    waiting = queue(sample("large", num_samples=10), sample("next"))
    assert admitted(waiting) == ["large"]
    waiting.finish("large")
    assert admitted(waiting) == ["next"]


def test_too_many_queued_samples_are_turned_away_for_now():
    waiting = queue(sample("a", num_samples=3), limit=4)
    with pytest.raises(Busy, match="3 samples are queued, the limit is 4"):
        waiting.put(sample("b", num_samples=2))
    waiting.admit()
    waiting.finish("a")
    waiting.put(sample("b", num_samples=2))


def test_a_queue_that_one_caller_has_filled_is_open_to_another_up_to_an_equal_share():
    waiting = queue(sample("mine", "me", num_samples=10), limit=10)
    with pytest.raises(Busy):
        waiting.put(sample("more", "me"))
    waiting.put(sample("yours", "you", num_samples=5))
    with pytest.raises(Busy, match="15 samples are queued"):
        waiting.put(sample("another", "you"))
    assert waiting.withdraw("yours")
    waiting.put(sample("again", "you", num_samples=5))


def test_a_single_request_may_exceed_the_limit_when_nothing_else_is_queued():
    assert admitted(queue(sample("large", num_samples=10), limit=4)) == ["large"]


def test_a_withdrawn_request_is_never_handed_over():
    waiting = queue(sample("a"), sample("b"))
    assert waiting.withdraw("a")
    assert not waiting.withdraw("a")
    assert admitted(waiting) == ["b"]
    assert waiting.waiting == 0


def test_withdrawing_the_last_of_a_callers_requests_leaves_the_others_turns():
    waiting = queue(sample("a", "me"), sample("b", "you"))
    waiting.withdraw("a")
    waiting.put(sample("c", "me"))
    assert admitted(waiting) == ["b", "c"]


def test_an_adapter_is_in_use_from_acceptance_to_the_end():
    waiting = queue(sample("a", adapter_id="x"))
    assert waiting.uses("x")
    waiting.admit()
    assert waiting.uses("x")
    waiting.finish("a")
    assert not waiting.uses("x")


def test_the_requests_of_a_session_are_found_wherever_they_are():
    mine = [replace(sample(f"mine{i}"), session_id="a") for i in range(3)]
    waiting = queue(mine[0], sample("without"), replace(sample("other"), session_id="b"), *mine[1:])
    assert admitted(waiting) == ["mine0", "without"]
    assert sorted(waiting.of_session("a")) == ["mine0", "mine1", "mine2"]
    assert waiting.of_session("nobody") == []
