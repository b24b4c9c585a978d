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


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/nothing"), ("POST", "/nothing"), ("GET", "/asample"), ("PUT", "/healthz")]
)
def test_an_unknown_route_is_answered_in_json(lasting_caller: Caller, method: str, path: str):
    response = lasting_caller.request(method, path)
    assert response.status_code in (404, 405)
    assert response.json() == {"detail": f"{method} /api/v1{path} is not a route of this server"}


@pytest.mark.parametrize("path", ["/checkpoints", "/training_runs", "/sessions"])
@pytest.mark.parametrize(
    "query", ["limit=0", "limit=-1", "limit=x", "limit=9999999", "offset=-1", f"offset={10**30}"]
)
def test_a_bad_page_is_refused_with_its_parameter(lasting_caller: Caller, path: str, query: str):
    response = lasting_caller.get(f"{path}?{query}")
    assert response.status_code == 400
    assert f"query.{query.partition('=')[0]}" in response.json()["detail"]


ODD_IDS = (
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e",
    "a%00b",
    "%ff%fe",
    "sess-x:train:0",
    "%3Ctrain%3E",
    "a;b",
    "x" * 5000,
    "%F0%9F%92%A3",
)


@pytest.mark.parametrize("odd", ODD_IDS, ids=lambda odd: odd[:24])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/sessions/{}"),
        ("GET", "/samplers/{}"),
        ("GET", "/training_runs/{}"),
        ("GET", "/training_runs/{}?access_scope=accessible"),
        ("GET", "/training_runs/{}/checkpoints"),
        ("DELETE", "/training_runs/run/checkpoints/weights/{}"),
        ("DELETE", "/training_runs/run/checkpoints/{}/x"),
        ("POST", "/training_runs/{}/checkpoints/weights/x/publish"),
        ("GET", "/training_runs/run/checkpoints/external_weights/{}/external_weights_urls"),
        ("GET", "/training_runs/run/checkpoints/weights/{}/archive"),
        ("GET", "/downloads/{}/archive.tar?expires=1&signature=x"),
        ("GET", "/downloads/ckpt-0/files/{}?expires=1&signature=x"),
        ("GET", "/tokenizers/{}"),
    ],
)
def test_an_odd_id_in_a_path_is_not_found(lasting_caller: Caller, method: str, path: str, odd: str):
    response = lasting_caller.request(method, path.format(odd))
    assert response.status_code in (400, 403, 404, 405), response.text
    assert response.json()["detail"]


@pytest.mark.parametrize("depth", [63, 64, 200, 900])
def test_json_that_is_nested_too_deep_is_refused_before_anything_recurses(lasting_caller: Caller, depth: int):
    nested = "[" * depth + "]" * depth
    body = f'{{"user_metadata": {{"x": {nested}}}}}'.encode()
    response = lasting_caller.request("POST", "/create_session", content=body, headers=JSON)
    assert response.status_code == 400
    assert "nested deeper than 64 levels" in response.json()["detail"]


def test_json_as_deep_as_allowed_is_kept_and_shown(lasting_caller: Caller):
    body = f'{{"user_metadata": {{"x": {"[" * 62 + "]" * 62}}}}}'.encode()
    session = lasting_caller.request("POST", "/create_session", content=body, headers=JSON).json()
    shown = lasting_caller.get(f"/sessions/{session['session_id']}").json()
    assert shown["user_metadata"] == {"x": "[" * 62 + "]" * 62}


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
