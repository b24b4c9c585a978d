"""One poll for all samples of a client: what it reports, once, in order, and never leaves out."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tests.server.served import Caller, Served, serving
from tests.server.toy_engine import ToyEngine
from tinkerlite_server.completions import CompletionLog
from tinkerlite_server.errors import EngineFailure, Gone
from tinkerlite_server.settings import Limits, Settings


def poll(caller: Caller, sampler: str, cursor: int = 0, client: int = 0, **fields: Any) -> dict[str, Any]:
    target = {"type": "sampling_session", "sampling_session_id": sampler, "cloned_sampler_id": client}
    return caller.ok("/retrieve_futures", target=target, prev_cursor=cursor, **fields)


def poll_for(caller: Caller, sampler: str, request_ids: set[str], client: int = 0) -> int:
    """Poll as a client does until all of these are reported, each once; the last cursor."""
    seen: list[str] = []
    cursor = 0
    while set(seen) < request_ids:
        answer = poll(caller, sampler, cursor, client)
        assert answer["cursor"] >= cursor
        cursor = answer["cursor"]
        seen += [each["request_id"] for each in answer["completions"]]
    assert sorted(seen) == sorted(request_ids)
    return cursor


def submit(caller: Caller, sampler: str, seq_id: int, **fields: Any) -> str:
    return caller.submit_sample(sampler, seq_id, **fields)["request_id"]


def test_every_sample_is_reported_once_with_the_size_of_its_result(caller: Caller):
    sampler = caller.sampler()
    requests = {submit(caller, sampler, seq_id) for seq_id in range(20)}
    cursor = 0
    reported: dict[str, dict[str, Any]] = {}
    while reported.keys() != requests:
        answer = poll(caller, sampler, cursor)
        cursor = answer["cursor"]
        for each in answer["completions"]:
            assert each["request_id"] not in reported
            reported[each["request_id"]] = each
    for request_id, completion in reported.items():
        assert completion["state"] == "finished"
        size = completion["response_payload_uncompressed_size"]
        assert size == len(caller.retrieve(request_id).content) > 0


def test_a_poll_is_answered_the_moment_that_a_sample_is_done(caller: Caller, toy: ToyEngine):
    """The hold is 25 s and the suite's limit is not: an answer means that the waiter was woken."""
    sampler = caller.sampler()
    model = caller.model()
    toy.gate.clear()
    step = caller.optim_step(model, 1)
    request_id = submit(caller, sampler, 0)
    opener = threading.Timer(0.2, toy.gate.set)
    opener.start()
    [completion] = poll(caller, sampler)["completions"]
    assert completion["request_id"] == request_id
    opener.join()
    caller.result(step)


def test_a_poll_with_timeout_0_only_says_what_is_there(caller: Caller):
    assert poll(caller, caller.sampler(), timeout=0) == {"completions": [], "cursor": 0}


def test_a_poll_that_finds_nothing_keeps_its_cursor(toy: ToyEngine, tmp_path: Path):
    with serving(toy, tmp_path, limits=Limits(poll_seconds=0.01)) as served:
        caller = served.caller()
        sampler = caller.sampler()
        cursor = poll_for(caller, sampler, {submit(caller, sampler, 0)})
        assert poll(caller, sampler, cursor) == {"completions": [], "cursor": cursor}


def test_what_a_lost_answer_said_is_said_again(caller: Caller):
    sampler = caller.sampler()
    cursor = poll_for(caller, sampler, {submit(caller, sampler, 0)})
    second = submit(caller, sampler, 1)
    assert [each["request_id"] for each in poll(caller, sampler, cursor)["completions"]] == [second]
    assert [each["request_id"] for each in poll(caller, sampler, cursor)["completions"]] == [second]


def test_a_failed_sample_is_reported_as_failed_and_its_reason_fetched(caller: Caller, toy: ToyEngine):
    sampler = caller.sampler()
    toy.failures["submit"] = EngineFailure("out of memory")
    request_id = submit(caller, sampler, 0)
    assert poll(caller, sampler)["completions"] == [{"state": "failed", "request_id": request_id}]
    assert caller.failure(request_id) == ("out of memory", "server")


def test_a_cancelled_sample_is_reported_too(caller: Caller, toy: ToyEngine):
    sampler = caller.sampler()
    model = caller.model()
    toy.gate.clear()
    step = caller.optim_step(model, 1)
    request_id = submit(caller, sampler, 0)
    caller.ok("/cancel_future", request_id=request_id)
    [completion] = poll(caller, sampler)["completions"]
    assert completion["request_id"] == request_id
    toy.gate.set()
    caller.result(step)


def test_clients_of_one_sampling_session_poll_apart(caller: Caller):
    sampler = caller.sampler()
    original = {submit(caller, sampler, 0)}
    clone = {submit(caller, sampler, 7 * 10**9), submit(caller, sampler, 7 * 10**9 + 1)}
    poll_for(caller, sampler, original)
    poll_for(caller, sampler, clone, client=7)


def test_a_number_of_a_sample_has_64_bits_so_that_clones_do_not_collide(caller: Caller):
    sampler = caller.sampler()
    largest = 10**9 * 10**9 - 1
    requests = {submit(caller, sampler, seq_id) for seq_id in (largest, largest - 2**32, largest % 2**32)}
    assert len(requests) == 3
    caller.refused("/asample", sampling_session_id=sampler, seq_id=2**63, prompt={"chunks": []})


def test_results_that_were_retrieved_are_let_go(caller: Caller):
    sampler = caller.sampler()
    request_id = submit(caller, sampler, 0)
    cursor = poll_for(caller, sampler, {request_id})
    caller.retrieve(request_id)
    poll(caller, sampler, cursor, timeout=0, retrieved_request_ids=[request_id])
    assert "is gone" in caller.refused("/retrieve_future", status=410, request_id=request_id)


def test_only_results_of_the_polled_client_can_be_let_go(caller: Caller):
    sampler, other = caller.sampler(), caller.sampler()
    request_id = submit(caller, sampler, 0)
    model = caller.submit_model(caller.session())
    caller.retrieve(request_id)
    caller.retrieve(model)
    poll(caller, other, timeout=0, retrieved_request_ids=[request_id, model, "nothing"])
    poll(caller, sampler, client=1, timeout=0, retrieved_request_ids=[request_id])
    assert caller.retrieve(request_id).status_code == caller.retrieve(model).status_code == 200


def test_a_result_that_made_room_is_still_reported_so_that_nobody_waits_for_ever(
    toy: ToyEngine, tmp_path: Path
):
    with serving(toy, tmp_path, limits=Limits(max_result_bytes=1)) as served:
        caller = served.caller()
        sampler = caller.sampler()
        requests = {submit(caller, sampler, seq_id) for seq_id in range(3)}
        poll_for(caller, sampler, requests)
        statuses = sorted(caller.retrieve(each).status_code for each in requests)
        assert statuses == [200, 410, 410]


def test_a_poll_for_someone_elses_samples_is_not_found(caller: Caller):
    sampler = caller.sampler()
    other = caller.server.caller("tml-other")
    target = {"sampling_session_id": sampler}
    other.refused("/retrieve_futures", status=404, target=target)
    other.refused("/join_sampling_session", status=404, sampling_session_id=sampler)
    caller.refused("/retrieve_futures", status=404, target={"sampling_session_id": "nothing"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": {"type": "training_run", "sampling_session_id": "x"}}, "target.type"),
        ({"target": {"sampling_session_id": "x", "cloned_sampler_id": -1}}, "cloned_sampler_id"),
        ({"target": {"sampling_session_id": "x"}, "prev_cursor": -1}, "prev_cursor"),
        ({"target": {"sampling_session_id": "x"}, "timeout": -1}, "timeout"),
        ({}, "target"),
    ],
)
def test_a_poll_that_makes_no_sense_is_refused(caller: Caller, fields: dict[str, Any], message: str):
    assert message in caller.refused("/retrieve_futures", **fields)


def test_held_session_polls_end_when_the_server_stops(caller: Caller):
    sampler = caller.sampler()
    stopper = threading.Timer(0.1, caller.server.service.begin_shutdown)
    stopper.start()
    assert poll(caller, sampler) == {"completions": [], "cursor": 0}
    stopper.join()


def test_after_a_restart_a_poll_says_that_the_samples_are_lost(tmp_path: Path):
    with serving(ToyEngine(), tmp_path) as served:
        caller = served.caller()
        sampler = caller.sampler()
        cursor = poll_for(caller, sampler, {submit(caller, sampler, 0)})
    with serving(ToyEngine(), tmp_path) as served:
        caller = served.caller()
        target = {"sampling_session_id": sampler}
        message = caller.refused("/retrieve_futures", status=410, target=target, prev_cursor=cursor)
        assert "restarted" in message
        poll_for(caller, sampler, {submit(caller, sampler, 1)})


def test_each_client_that_joins_gets_a_number_of_its_own_even_after_a_restart(tmp_path: Path):
    def join(caller: Caller, sampler: str) -> int:
        return caller.ok("/join_sampling_session", sampling_session_id=sampler)["client_counter"]

    with serving(ToyEngine(), tmp_path) as served:
        sampler = served.caller().sampler()
        assert [join(served.caller(), sampler) for _ in range(2)] == [1, 2]
    with serving(ToyEngine(), tmp_path) as served:
        assert [join(served.caller(), sampler) for _ in range(2)] == [3, 4]


@pytest.mark.parametrize("asked", [False, True])
def test_clients_poll_by_session_only_where_the_server_was_started_so(tmp_path: Path, asked: bool):
    served = Served(Settings(data_dir=tmp_path, session_poller=asked), ToyEngine())
    try:
        assert served.caller().ok("/client/config")["sample_use_retrieve_futures"] is asked
    finally:
        served.close()


# ---- the log itself ----


@pytest.fixture
def log() -> CompletionLog:
    log = CompletionLog()
    for name in ("a", "b", "c"):
        log.add("group", name, failed=False, size_bytes=1)
    return log


def names(log: CompletionLog, cursor: int) -> list[str]:
    return [each.request_id for each in log.after("group", cursor)]


def test_a_later_cursor_drops_what_came_before_it(log: CompletionLog):
    first, second, _ = log.after("group", 0)
    assert names(log, first.cursor) == ["b", "c"]
    assert names(log, second.cursor) == ["c"]
    assert names(log, 0) == ["c"]


def test_what_was_fetched_is_reported_no_more(log: CompletionLog):
    log.drop("group", "b")
    assert names(log, 0) == ["a", "c"]


def test_cursors_rise_over_restarts(log: CompletionLog):
    old = log.after("group", 0)[-1].cursor
    later = CompletionLog()
    later.add("group", "d", failed=True, size_bytes=0)
    with pytest.raises(Gone, match="restarted"):
        later.after("group", old)
    with pytest.raises(Gone, match="restarted"):  # had the clock been set back in between
        later.after("group", old + 3_600_000_000)
    assert names(later, 0) == ["d"]
