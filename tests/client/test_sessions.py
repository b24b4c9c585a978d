"""Sessions: the handshake, the heartbeats, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import socket
import sys
import threading
import time

import pytest

import tinkerlite
from tests.client.scripted_server import HASTY, Answer, ScriptedServer, eventually
from tinkerlite import errors
from tinkerlite.types import AdamParams

LIVELY = dataclasses.replace(HASTY, heartbeat_seconds=0.02)


def test_the_server_is_asked_for_its_wishes_and_then_for_a_session(server: ScriptedServer):
    with tinkerlite.ServiceClient({"owner": "ada"}, "p1", base_url=server.url, config=HASTY) as service:
        assert service.session_id == "session"
    config, session = server.received[:2]
    assert (config.path, session.path) == ("client/config", "create_session")
    assert session.json["user_metadata"] == {"owner": "ada"}
    assert session.json["project_id"] == "p1"
    assert config.headers["x-api-key"] == session.headers["x-api-key"] == "tml-local"


@pytest.mark.parametrize(
    ("named", "tags"),
    [("sweep, night ,,sweep,", ["sweep", "night"]), ("", []), (" , ", []), ("one", ["one"])],
)
@pytest.mark.parametrize("variable", ["TINKERLITE_TAGS", "TINKER_TAGS"])
def test_a_session_is_tagged_with_what_the_environment_names(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, variable: str, named: str, tags: list[str]
):
    monkeypatch.setenv(variable, named)
    with tinkerlite.ServiceClient(base_url=server.url, config=HASTY):
        pass
    [session] = server.sent("create_session")
    assert session.json["tags"] == tags


def test_a_server_without_wishes_gets_the_protocols_defaults(server: ScriptedServer):
    server.script("client/config", Answer(404, {"detail": "Not Found"}))
    with tinkerlite.ServiceClient(base_url=server.url, config=HASTY) as service:
        assert service.session_id == "session"


def test_where_no_server_is_the_error_says_how_to_start_one():
    with pytest.raises(errors.APIConnectionError, match="tinkerlite serve"):
        tinkerlite.ServiceClient(base_url="http://127.0.0.1:9", config=HASTY)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse what a full backlog cannot hold")
def test_a_connection_that_does_not_open_says_how_long_that_was_waited_for():
    config = dataclasses.replace(HASTY, connect_timeout_seconds=0.1)
    with contextlib.ExitStack() as stack:
        busy = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(busy.getsockname())
        with pytest.raises(errors.APIConnectionError, match=r"no answer within 0\.1 s \(ConnectTimeout\)"):
            tinkerlite.ServiceClient(base_url=f"http://127.0.0.1:{busy.getsockname()[1]}", config=config)


def test_a_base_url_may_have_a_path(server: ScriptedServer):
    with tinkerlite.ServiceClient(base_url=f"{server.url}/services/prod/", config=HASTY):
        pass
    assert {request.prefix for request in server.received} == {"/services/prod"}


def test_what_the_server_has_to_say_is_logged(server: ScriptedServer, caplog: pytest.LogCaptureFixture):
    greeting = {"session_id": "session", "info_message": "hello", "warning_message": "maintenance at noon"}
    server.script("create_session", Answer(body=greeting))
    with (
        caplog.at_level(logging.INFO, "tinkerlite"),
        tinkerlite.ServiceClient(base_url=server.url, config=HASTY),
    ):
        pass
    assert [record.message for record in caplog.records if record.name == "tinkerlite"] == [
        "the server says: hello",
        "the server says: maintenance at noon",
    ]


def test_the_session_is_kept_alive_through_failures(server: ScriptedServer):
    server.script("session_heartbeat", Answer(500, {}), Answer(drop=True))
    with tinkerlite.ServiceClient(base_url=server.url, config=LIVELY):
        assert eventually(lambda: len(server.sent("session_heartbeat")) >= 4)


def test_heartbeats_end_when_the_server_has_ended_the_session(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
):
    server.script("session_heartbeat", Answer(410, {}))
    with tinkerlite.ServiceClient(base_url=server.url, config=LIVELY):
        assert eventually(lambda: "has ended it" in caplog.text)
        time.sleep(0.1)
    assert len(server.sent("session_heartbeat")) == 1


def test_a_session_that_nobody_holds_any_more_stops_beating(server: ScriptedServer):
    service = tinkerlite.ServiceClient(base_url=server.url, config=LIVELY)
    sampler = service.create_sampling_client(base_model="tiny")
    del service
    gc.collect()
    beats = len(server.sent("session_heartbeat"))
    assert eventually(lambda: len(server.sent("session_heartbeat")) > beats), "the sampler still needs it"
    del sampler
    gc.collect()
    assert eventually(lambda: _is_quiet(server))


def _is_quiet(server: ScriptedServer) -> bool:
    beats = len(server.sent("session_heartbeat"))
    time.sleep(0.1)
    return len(server.sent("session_heartbeat")) == beats


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (None, "success"),
        (ValueError, "errored"),
        (KeyboardInterrupt, "interrupted"),
        (asyncio.CancelledError, "interrupted"),  # Ctrl-C where a loop runs
    ],
)
def test_leaving_the_block_tells_the_server_how_it_ended(
    server: ScriptedServer, raised: type[BaseException] | None, reason: str
):
    try:
        with tinkerlite.ServiceClient(base_url=server.url, config=HASTY):
            if raised is not None:
                raise raised
    except (ValueError, KeyboardInterrupt, asyncio.CancelledError):
        pass
    [finish] = server.sent("sessions/session/finish")
    assert finish.json["reason"] == {"type": reason}


def test_closing_twice_is_closing_once(server: ScriptedServer):
    service = tinkerlite.ServiceClient(base_url=server.url, config=HASTY)
    service.close()
    service.close()
    assert len(server.sent("sessions/session/finish")) == 1


def test_closing_ends_the_wait_of_whoever_still_waits(server: ScriptedServer):
    release = threading.Event()
    service = tinkerlite.ServiceClient(base_url=server.url, config=HASTY)
    training = service.create_lora_training_client("tiny")
    server.script("result of optim_step-1", Answer(after=release))
    step = training.optim_step(AdamParams())
    service.close()
    with pytest.raises(errors.ClientClosedError):
        step.result()
    with pytest.raises(errors.ClientClosedError, match="make a new one"):
        service.get_server_capabilities()
    release.set()
