from __future__ import annotations

import asyncio
import threading
import time

import pytest

from tinkerlite_server.errors import BadRequest, Gone, UnknownName
from tinkerlite_server.futures import Done, Failed, FutureTable, Times, fingerprint


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def table(clock: Clock | None = None, *, max_result_bytes: int = 1000) -> FutureTable:
    return FutureTable(
        result_seconds=60.0,
        unfetched_seconds=600.0,
        max_result_bytes=max_result_bytes,
        clock=clock or Clock(),
    )


def fetch(futures: FutureTable, request_id: str, owner: str = "me") -> object:
    return asyncio.run(futures.wait(request_id, owner, 0.01))


def test_a_waiter_is_woken_by_a_result_from_another_thread():
    futures = table()
    request_id = futures.open("me").request_id

    async def wait_for_it() -> object:
        threading.Timer(0.05, futures.settle, (request_id, Done(b"x"))).start()
        return await futures.wait(request_id, "me", 30.0)

    assert asyncio.run(wait_for_it()) == Done(b"x")


def test_every_overlapping_waiter_gets_the_result():
    futures = table()
    request_id = futures.open("me").request_id

    async def two_waiters() -> list[object]:
        waiting = asyncio.gather(*(futures.wait(request_id, "me", 30.0) for _ in range(2)))
        await asyncio.sleep(0)
        futures.settle(request_id, Done(b"x"))
        return await waiting

    assert asyncio.run(two_waiters()) == [Done(b"x"), Done(b"x")]


def test_a_pending_request_yields_nothing_once_the_hold_is_over():
    futures = table()
    assert fetch(futures, futures.open("me").request_id) is None


def test_a_result_can_be_fetched_again():
    futures = table()
    request_id = futures.open("me").request_id
    futures.settle(request_id, Failed("no", "user"))
    assert [fetch(futures, request_id) for _ in range(3)] == [Failed("no", "user")] * 3


def test_the_first_outcome_stands():
    futures = table()
    request_id = futures.open("me").request_id
    futures.settle(request_id, Done(b"first"))
    futures.settle(request_id, Done(b"second"))
    assert fetch(futures, request_id) == Done(b"first")


def test_a_fetched_result_is_gone_after_its_time():
    clock = Clock()
    futures = table(clock)
    request_id = futures.open("me").request_id
    futures.settle(request_id, Done(b"x"))
    clock.now = 500.0
    futures.sweep()
    assert fetch(futures, request_id) == Done(b"x")  # nobody had fetched it yet
    clock.now = 561.0
    futures.sweep()
    with pytest.raises(Gone, match="60 s"):
        fetch(futures, request_id)


def test_a_result_that_nobody_fetches_goes_too():
    clock = Clock()
    futures = table(clock)
    request_id = futures.open("me").request_id
    futures.settle(request_id, Done(b"x"))
    clock.now = 601.0
    futures.sweep()
    with pytest.raises(Gone):
        fetch(futures, request_id)


def test_over_budget_fetched_results_go_before_others():
    futures = table(max_result_bytes=10)
    fetched, unfetched, newest = (futures.open("me").request_id for _ in range(3))
    futures.settle(unfetched, Done(b"1234"))
    futures.settle(fetched, Done(b"1234"))
    fetch(futures, fetched)
    futures.settle(newest, Done(b"1234"))
    with pytest.raises(Gone):
        fetch(futures, fetched)
    assert fetch(futures, unfetched) == fetch(futures, newest) == Done(b"1234")


def test_a_result_larger_than_the_budget_can_still_be_fetched():
    futures = table(max_result_bytes=10)
    request_id = futures.open("me").request_id
    futures.settle(request_id, Done(b"x" * 100))
    assert fetch(futures, request_id) == Done(b"x" * 100)


def test_someone_elses_request_is_not_there():
    futures = table()
    request_id = futures.open("me").request_id
    futures.settle(request_id, Done(b"x"))
    with pytest.raises(UnknownName):
        fetch(futures, request_id, owner="you")


def test_someone_elses_result_is_not_there_even_once_it_is_gone():
    clock = Clock()
    futures = table(clock)
    request_id = futures.open("me").request_id
    futures.settle(request_id, Done(b"x"))
    clock.now = 1e6
    futures.sweep()
    with pytest.raises(UnknownName):
        fetch(futures, request_id, owner="you")


def test_a_request_sent_again_is_the_same_request():
    futures = table()
    first = futures.open("me", ("run", 1), b"content")
    again = futures.open("me", ("run", 1), b"content")
    assert (first.is_new, again.is_new) == (True, False)
    assert first.request_id == again.request_id


def test_a_number_used_again_with_other_content_is_refused():
    futures = table()
    futures.open("me", ("run", 1), b"content")
    with pytest.raises(BadRequest, match="other content"):
        futures.open("me", ("run", 1), b"something else")


def test_a_request_that_was_not_accepted_leaves_nothing():
    futures = table()
    ticket = futures.open("me", ("run", 1), b"content")
    futures.discard(ticket.request_id)
    assert futures.open("me", ("run", 1), b"something else").is_new


def test_closing_sends_waiters_away_at_once():
    futures = table()
    request_id = futures.open("me").request_id

    async def close_while_waiting() -> object:
        waiting = asyncio.create_task(futures.wait(request_id, "me", 3600.0))
        await asyncio.sleep(0)
        futures.close()
        return await waiting, await futures.wait(request_id, "me", 3600.0)

    assert asyncio.run(close_while_waiting()) == (None, None)


def test_fingerprints_tell_where_one_part_ends():
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert fingerprint("ab", "c") == fingerprint("ab", "c")


def follow(futures: FutureTable, request_id: str, owner: str = "me") -> list[object]:
    async def everything() -> list[object]:
        return [each async for news in futures.follow(request_id, owner) for each in news]

    return asyncio.run(asyncio.wait_for(everything(), 10))


def test_a_follower_gets_what_is_reported_in_order_until_there_is_a_result():
    futures = table()
    request_id = futures.open("me").request_id
    futures.report(request_id, [1, 2])

    def later() -> None:
        futures.report(request_id, [3])
        time.sleep(0.05)
        futures.report(request_id, [4, 5])
        futures.settle(request_id, Done(b"x"))
        futures.report(request_id, [6])

    threading.Timer(0.05, later).start()
    assert follow(futures, request_id) == [1, 2, 3, 4, 5]
    assert fetch(futures, request_id) == Done(b"x")


def test_what_was_reported_before_a_result_is_still_followed_after_it():
    futures = table()
    request_id = futures.open("me").request_id
    futures.report(request_id, [1])
    futures.settle(request_id, Failed("no", "user"))
    assert follow(futures, request_id) == [1]
    assert follow(futures, request_id) == []


def test_a_stop_of_the_server_ends_what_is_followed():
    futures = table()
    request_id = futures.open("me").request_id
    threading.Timer(0.05, futures.close).start()
    assert follow(futures, request_id) == []


def test_others_requests_are_not_followed():
    futures = table()
    with pytest.raises(UnknownName):
        follow(futures, futures.open("me").request_id, "someone else")


def test_reports_do_not_wake_those_who_wait_for_the_result():
    futures = table()
    request_id = futures.open("me").request_id
    futures.report("req-of-nobody", [0])

    async def wait_for_it() -> object:
        threading.Timer(0.05, futures.report, (request_id, [1])).start()
        threading.Timer(0.1, futures.settle, (request_id, Done(b"x"))).start()
        return await futures.wait(request_id, "me", None)

    assert asyncio.run(wait_for_it()) == Done(b"x")


def test_a_settled_request_says_how_long_it_was_queued_and_how_long_in_the_engines_hands():
    clock = Clock()
    futures = table(clock)
    request_id = futures.open("me").request_id
    clock.now = 3.0
    futures.begin([request_id])
    assert futures.times(request_id) is None, "it is not settled"
    clock.now = 5.0
    futures.begin([request_id])  # it goes on in another turn
    clock.now = 10.0
    futures.settle(request_id, Done(b"x"))
    assert futures.times(request_id) == Times(queued=3.0, engine=7.0)


def test_what_the_engine_never_took_up_has_no_times():
    futures = table()
    request_id = futures.open("me").request_id
    futures.settle(request_id, Failed("its session has ended", "user"))
    assert futures.times(request_id) is None
