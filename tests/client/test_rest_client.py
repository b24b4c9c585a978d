"""RestClient: which request each question is, and how answers of other shapes are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import tinkerlite
from tests.client.scripted_server import HASTY, Answer, ScriptedServer
from tinkerlite import errors, types

PATH = "tinker://session:train:0/weights/step"
CHECKPOINT = "training_runs/session:train:0/checkpoints/weights/step"


@pytest.fixture
def rest(server: ScriptedServer) -> Iterator[tinkerlite.RestClient]:
    client = tinkerlite.RestClient(base_url=server.url, config=HASTY)
    yield client
    client.close()


@pytest.mark.parametrize(
    ("call", "method", "path", "body"),
    [
        (lambda rest: rest.publish_checkpoint_from_tinker_path(PATH), "POST", "publish", None),
        (lambda rest: rest.unpublish_checkpoint_from_tinker_path(PATH), "DELETE", "publish", None),
        (lambda rest: rest.delete_checkpoint_from_tinker_path(PATH), "DELETE", "", None),
        (lambda rest: rest.delete_checkpoint("session:train:0", "weights/step"), "DELETE", "", None),
        (
            lambda rest: rest.set_checkpoint_ttl_from_tinker_path(PATH, 3600),
            "PUT",
            "ttl",
            {"ttl_seconds": 3600},
        ),
        (
            lambda rest: rest.set_checkpoint_ttl_from_tinker_path(PATH, None),
            "PUT",
            "ttl",
            {"ttl_seconds": None},
        ),
    ],
)
def test_a_checkpoint_is_changed_under_its_own_path(
    server: ScriptedServer,
    rest: tinkerlite.RestClient,
    call: Callable[[tinkerlite.RestClient], tinkerlite.APIFuture[None]],
    method: str,
    path: str,
    body: object,
):
    where = f"{CHECKPOINT}/{path}".rstrip("/")
    server.script(where, Answer(204, b""))
    assert call(rest).result() is None
    [request] = server.sent(where)
    assert request.method == method
    assert (request.json if request.content else None) == body


def test_a_deletion_whose_answer_was_lost_is_done_when_nothing_is_left_to_delete(
    server: ScriptedServer, rest: tinkerlite.RestClient
):
    gone = Answer(404, {"detail": "no such checkpoint"})
    server.script(CHECKPOINT, Answer(drop=True), gone, gone)
    assert rest.delete_checkpoint_from_tinker_path(PATH).result() is None
    with pytest.raises(errors.NotFoundError):
        rest.delete_checkpoint_from_tinker_path(PATH).result()
    assert len(server.sent(CHECKPOINT)) == 3


def test_a_project_narrows_a_listing_and_is_left_out_where_none_is_named(
    server: ScriptedServer, rest: tinkerlite.RestClient
):
    page = Answer(
        body={"training_runs": [], "cursor": {"offset": 0, "limit": 5, "total_count": 0}},
    )
    server.script("training_runs", page, page)
    rest.list_training_runs(limit=5, project_id="p").result()
    rest.list_training_runs(limit=5).result()
    with_project, without = [request.query for request in server.sent("training_runs")]
    assert with_project == "limit=5&offset=0&access_scope=owned&project_id=p"
    assert without == "limit=5&offset=0&access_scope=owned"


@pytest.mark.parametrize(
    "bad",
    [
        "weights/step",
        "tinker://run",
        "tinker://run/step",
        "tinker://run/other/step",
        "tinker://run/weights/a/b",
    ],
)
def test_a_path_of_another_form_is_refused_before_anything_is_sent(
    server: ScriptedServer, rest: tinkerlite.RestClient, bad: str
):
    with pytest.raises(errors.InvalidRequest, match="tinker://"):
        rest.delete_checkpoint_from_tinker_path(bad)
    assert [request.path for request in server.received] == ["client/config"]


def test_sessions_are_searched_page_by_page(server: ScriptedServer, rest: tinkerlite.RestClient):
    cursor = {"last_created_at": "2026-01-02T03:04:05Z", "last_session_id": "s1"}
    found: dict[str, Any] = {
        "session_id": "s1",
        "created_at": "2026-01-02T03:04:05Z",
        "owner": "me",
        "project_id": "p",
        "checkpoints_count": 2,
        "status": {"type": "client_finished", "reason": {"type": "success"}},
    }
    server.script("sessions/search", Answer(body={"sessions": [found], "next_cursor": cursor}))
    server.script("sessions/search", Answer(body={"sessions": []}))
    asked = types.SessionSearchRequest(
        display_name="run", statuses=[types.ActiveSessionStatusQuery()], user_metadata={"a": "b"}
    )
    first = rest.search_sessions(asked).result()
    status = first.sessions[0].status
    assert isinstance(status, types.ClientSessionFinished)
    assert status.reason.type == "success"
    second = rest.search_sessions(asked.model_copy(update={"cursor": first.next_cursor})).result()
    assert second.next_cursor is None
    one, other = [request.json for request in server.sent("sessions/search")]
    assert one == {
        "display_name": "run",
        "user_metadata": {"a": "b"},
        "owner": {"type": "own"},
        "statuses": [{"type": "active"}],
        "limit": 50,
    }
    assert other == {**one, "cursor": cursor}


def test_a_copy_whose_answer_was_lost_is_asked_for_again_as_the_same_copy(
    server: ScriptedServer, rest: tinkerlite.RestClient
):
    server.script("copy_weights", Answer(drop=True), Answer(body={"tinker_path": "tinker://r/weights/step"}))
    assert rest.copy_weights(PATH, "archive", ttl_seconds=3600).result() == "tinker://r/weights/step"
    first, again = server.sent("copy_weights")
    assert first.headers["x-idempotency-key"] == again.headers["x-idempotency-key"]
    assert first.json == {"source_path": PATH, "destination_project_id": "archive", "ttl_seconds": 3600}
    server.script("copy_weights", Answer(body={"tinker_path": "tinker://s/weights/step"}))
    rest.copy_weights(PATH, "archive").result()
    assert server.sent("copy_weights")[2].headers["x-idempotency-key"] != first.headers["x-idempotency-key"]


def test_a_copy_is_filed_under_a_project(
    server: ScriptedServer, rest: tinkerlite.RestClient, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(errors.InvalidRequest, match="TINKERLITE_PROJECT_ID"):
        rest.copy_weights(PATH)
    monkeypatch.setenv("TINKER_PROJECT_ID", "p")
    server.script("copy_weights", Answer(body={"tinker_path": "tinker://r/weights/step"}))
    rest.copy_weights(PATH).result()
    assert server.sent("copy_weights")[0].json["destination_project_id"] == "p"


def test_nobody_is_behind_an_api_key_and_the_error_says_so(rest: tinkerlite.RestClient):
    with pytest.raises(errors.CapabilityError, match="does not say whose it is"):
        rest.whoami().result()


def test_an_archive_is_where_the_server_redirects_to(server: ScriptedServer, rest: tinkerlite.RestClient):
    headers = {"Location": "https://files.example/a.tar?sig=1", "Expires": "Fri, 02 Jan 2026 03:04:05 GMT"}
    server.script(f"{CHECKPOINT}/archive", Answer(302, {}, headers))
    archive = rest.get_checkpoint_archive_url_from_tinker_path(PATH).result()
    assert archive.url == "https://files.example/a.tar?sig=1"
    assert archive.expires is not None
    assert archive.expires.isoformat() == "2026-01-02T03:04:05+00:00"


def test_an_archive_that_is_still_being_packed_is_waited_for(
    server: ScriptedServer, rest: tinkerlite.RestClient
):
    packing = Answer(503, {"detail": "still packing"}, {"Retry-After": "0"})
    ready = Answer(body={"url": "/files/a.tar", "expires": "2026-01-02T03:04:05Z"})
    server.script(f"{CHECKPOINT}/archive", packing, ready)
    archive = rest.get_checkpoint_archive_url("session:train:0", "weights/step").result()
    assert archive.url == f"{server.url}/files/a.tar"


def test_a_service_client_keeps_its_connection_when_its_rest_client_is_closed(
    server: ScriptedServer, service: tinkerlite.ServiceClient
):
    service.create_rest_client().close()
    assert service.create_sampling_client(base_model="tiny").get_base_model() == "tiny"


@pytest.mark.parametrize("name", [n for n in dir(tinkerlite.RestClient) if n.endswith("_async")])
def test_every_question_is_there_in_async_spelling_with_the_same_arguments(name: str):
    twin = getattr(tinkerlite.RestClient, name)
    assert twin.__wrapped__ is getattr(tinkerlite.RestClient, name.removesuffix("_async"))


def test_a_twin_is_awaited_for_the_result(server: ScriptedServer):
    import asyncio

    async def ask() -> types.ListSessionsResponse:
        server.script("sessions", Answer(body={"sessions": ["s"]}))
        rest = tinkerlite.RestClient(base_url=server.url, config=HASTY)
        try:
            return await rest.list_sessions_async(limit=1)
        finally:
            rest.close()

    assert asyncio.run(ask()).sessions == ["s"]
