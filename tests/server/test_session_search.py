"""Searching sessions: every condition narrows, pages follow one another, nobody sees another's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.server.served import Caller, serving
from tests.server.toy_engine import ToyEngine
from tinkerlite import types
from tinkerlite_server.settings import Limits


def make(caller: Caller, name: str | None = None, **fields: Any) -> str:
    return caller.ok("/create_session", display_name=name, **fields)["session_id"]


def search(caller: Caller, **conditions: Any) -> types.SessionSearchResponse:
    return types.SessionSearchResponse.model_validate(caller.ok("/sessions/search", **conditions))


def found(caller: Caller, **conditions: Any) -> list[str]:
    return [each.session_id for each in search(caller, **conditions).sessions]


def finish(caller: Caller, session: str, reason: str = "success", detail: str | None = None) -> None:
    caller.ok(f"/sessions/{session}/finish", reason={"type": reason}, detail=detail)


def test_without_conditions_all_of_ones_sessions_are_found_newest_first(caller: Caller):
    sessions = [make(caller) for _ in range(3)]
    make(caller.server.caller("tml-someone-else"))
    assert found(caller) == sessions[::-1]
    assert found(caller, owner={"type": "own"}) == found(caller, owner={"type": "accessible"})


def test_a_summary_says_what_is_known_of_a_session(caller: Caller):
    session = make(caller, "Run 7", user_metadata={"lr": 0.1, "task": "math"}, project_id="thesis")
    model = caller.model(session)
    caller.save(model, 1, "a")
    caller.save(model, 2, "b")
    [summary] = search(caller).sessions
    listed = caller.get("/checkpoints").json()["checkpoints"]
    assert (summary.session_id, summary.display_name, summary.project_id) == (session, "Run 7", "thesis")
    assert summary.user_metadata == {"lr": "0.1", "task": "math"}
    assert summary.checkpoints_count == 2
    assert summary.checkpoint_storage_bytes == sum(each["size_bytes"] for each in listed)
    assert isinstance(summary.status, types.SessionActive)
    assert summary.created_at.tzinfo is not None


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({"display_name": "sft"}, ["plain", "long"]),
        ({"display_name": "RUN sft"}, ["long"]),
        ({"display_name": "nothing"}, []),
        ({"user_metadata": {"task": "math"}}, ["plain"]),
        ({"user_metadata": {"task": "math", "lr": "1"}}, []),
        ({"user_metadata": {'odd" key': "x"}}, []),
        ({"project_ids": ["p", "q"]}, ["long"]),
        ({"project_ids": []}, []),
        ({"display_name": "sft", "project_ids": ["p"]}, ["long"]),
        ({"owner": {"type": "user", "owner_urns": ["nobody"]}}, []),
    ],
)
def test_every_condition_narrows(caller: Caller, conditions: dict[str, Any], expected: list[str]):
    names = {
        make(caller, "an SFT", user_metadata={"task": "math"}): "plain",
        make(caller, "SFT, second run", project_id="p"): "long",
        make(caller): "unnamed",
    }
    assert {names[each] for each in found(caller, **conditions)} == set(expected)


def test_an_id_or_a_name_is_enough(caller: Caller):
    first, second, _ = make(caller, "alpha"), make(caller, "beta"), make(caller, "gamma")
    assert found(caller, session_id=first) == [first]
    assert found(caller, session_id=first, display_name="beta") == [second, first]
    assert found(caller, session_id="sess-unknown") == []


def test_sessions_are_found_by_how_they_ended(toy: ToyEngine, tmp_path: Path):
    with serving(toy, tmp_path, limits=Limits(session_seconds=0.0)) as served:
        caller = served.caller()
        silent = make(caller)
        served.service.sweep()
        going, done, broken = make(caller), make(caller), make(caller)
        finish(caller, done)
        finish(caller, broken, "errored", "out of patience")
        finish(caller, broken, "success")  # the first reason stands
        assert found(caller, statuses=[{"type": "active"}]) == [going]
        assert found(caller, statuses=[{"type": "client_finished"}]) == [broken, done]
        errored = {"type": "client_finished", "reasons": ["errored"]}
        assert found(caller, statuses=[errored, {"type": "active"}]) == [broken, going]
        assert found(caller, statuses=[{"type": "failed"}, {"type": "cancelled"}]) == []
        status = {each.session_id: each.status for each in search(caller).sessions}
        assert status[silent] is None
        ended = status[broken]
        assert isinstance(ended, types.ClientSessionFinished)
        assert (ended.reason.type, ended.detail) == ("errored", "out of patience")


def test_pages_follow_one_another_without_gap_or_repeat(caller: Caller):
    sessions = [make(caller, "x") for _ in range(7)]
    seen: list[str] = []
    cursor = None
    while True:
        page = search(caller, display_name="x", limit=3, cursor=cursor)
        seen += [each.session_id for each in page.sessions]
        if page.next_cursor is None:
            break
        cursor = page.next_cursor.model_dump(mode="json")
    assert seen == sessions[::-1]


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 201}, "limit"),
        ({"display_name": ""}, "display_name"),
        ({"statuses": []}, "statuses"),
        ({"statuses": [{"type": "lost"}]}, "statuses.0"),
        ({"owner": {"type": "user", "owner_urns": []}}, "owner"),
        ({"cursor": {"last_created_at": "2026-01-01T00:00:00", "last_session_id": "s"}}, "cursor"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_a_condition_that_makes_no_sense_is_refused_by_name(
    caller: Caller, conditions: dict[str, Any], message: str
):
    assert message in caller.refused("/sessions/search", **conditions)


def test_a_project_is_a_label_that_can_be_changed_and_taken_off(caller: Caller):
    session = make(caller, project_id="old")
    model = caller.model(session)
    url = f"/sessions/{session}/project"
    for label in ("new", None):
        assert caller.request("PUT", url, json={"project_id": label}).status_code == 204
        assert found(caller, project_ids=["old"]) == []
        assert found(caller, project_ids=["new"]) == ([session] if label else [])
        runs = caller.get("/training_runs?project_id=new").json()["training_runs"]
        assert [each["training_run_id"] for each in runs] == ([model] if label else [])
    assert caller.request("PUT", url, json={}).status_code == 400
    assert caller.request("PUT", "/sessions/other/project", json={"project_id": "x"}).status_code == 404


@pytest.mark.parametrize("path", ["/sessions", "/training_runs"])
def test_an_access_scope_is_one_of_two(caller: Caller, path: str):
    for scope in ("owned", "accessible"):
        assert caller.get(f"{path}?access_scope={scope}").status_code == 200
    assert "access_scope" in caller.get(f"{path}?access_scope=all").json()["detail"]
