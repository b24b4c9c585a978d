"""Requests that are wrong as HTTP or as JSON: a clear 4xx, never a 5xx, and the server lives on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.server.served import Caller, Served, serving
from tests.server.toy_engine import ToyEngine
from tinkerlite_server.settings import Limits

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b"\xff\xfe\x00", "the body is not JSON"),
        (b"[1, 2]", "the body is a JSON list; send an object"),
        (b"null", "the body is a JSON NoneType; send an object"),
        (b"[" * 100_000, "the body is not JSON"),
        (b'{"a": ' * 100_000, "the body is not JSON"),
        (b"9" * 5000, "the body is not JSON"),
        (b'{"tags": ["\\ud800"]}', "the body has text that is not Unicode"),
        (b'{"tags": 5}', "tags: Input should be"),
        (b'{"tags": [null]}', "tags.0: Input should be a valid string"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_a_body_that_is_no_json_object_is_refused(lasting_caller: Caller, content: bytes, message: str):
    response = lasting_caller.request("POST", "/create_session", content=content, headers=JSON)
    assert response.status_code == 400
    assert message in response.json()["detail"]
    assert int(response.headers["content-length"]) == len(response.content)
    assert lasting_caller.session()


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(lasting_caller: Caller, value: str):
    model = lasting_caller.model()
    body = f'{{"model_id": "{model}", "seq_id": 1, "adam_params": {{"learning_rate": {value}}}}}'
    response = lasting_caller.request("POST", "/optim_step", content=body.encode(), headers=JSON)
    assert response.status_code == 400
    assert "adam_params.learning_rate: Input should be a finite number" in response.json()["detail"]
    assert "metrics" in lasting_caller.result(lasting_caller.optim_step(model, 2))


def test_a_form_is_refused_so_that_web_pages_cannot_send_one(lasting_caller: Caller):
    response = lasting_caller.request(
        "POST", "/create_session", content=b"{}", headers={"Content-Type": "text/plain"}
    )
    assert response.status_code == 415
    assert "send application/json" in response.json()["detail"]


def test_a_compressed_body_is_refused_by_name(lasting_caller: Caller):
    headers = {"Content-Type": "application/x-protobuf", "Content-Encoding": "zstd"}
    response = lasting_caller.request("POST", "/forward_backward", content=b"x", headers=headers)
    assert response.status_code == 415
    assert "'zstd'" in response.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/nothing"), ("POST", "/nothing"), ("GET", "/asample"), ("PUT", "/healthz")]
)
def test_an_unknown_route_is_answered_in_json(lasting_caller: Caller, method: str, path: str):
    response = lasting_caller.request(method, path)
    assert response.status_code in (404, 405)
    assert response.json() == {"detail": f"{method} /api/v1{path} is not a route of this server"}


@pytest.mark.parametrize("query", ["limit=0", "limit=-1", "limit=x", "limit=9999999", "offset=-1"])
def test_a_bad_page_is_refused_with_its_parameter(lasting_caller: Caller, query: str):
    response = lasting_caller.get(f"/checkpoints?{query}")
    assert response.status_code == 400
    assert f"query.{query.partition('=')[0]}" in response.json()["detail"]


@pytest.fixture
def small_bodies(toy: ToyEngine, tmp_path: Path):
    with serving(toy, tmp_path, limits=Limits(max_body_bytes=1000)) as running:
        yield running


@pytest.mark.parametrize("path", ["/create_session", "/telemetry"])
def test_a_body_beyond_the_bound_is_refused_while_it_streams_in(small_bodies: Served, path: str):
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(10_000):
            sent += 100
            yield b" " * 100

    caller = small_bodies.caller()
    response = caller.request("POST", path, content=endless(), headers=JSON)
    assert response.status_code == 413
    assert "larger than 1000 bytes" in response.json()["detail"]
    assert caller.session()


def test_a_body_within_the_bound_is_fine(small_bodies: Served):
    body = json.dumps({"tags": ["x" * 900]}).encode()
    assert small_bodies.caller().request("POST", "/create_session", content=body, headers=JSON).is_success


def test_a_defect_in_a_route_is_that_requests_alone(
    caller: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(caller.server.service, "open_session", broken)
    response = caller.post("/create_session")
    assert response.status_code == 500
    assert response.json() == {"detail": "an error in the server; its log has the details"}
    assert "secret detail" in caplog.text
    monkeypatch.undo()
    assert caller.session()
