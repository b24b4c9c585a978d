"""Real HTTP, and clients that speak it badly: a clear answer or a closed connection, and nothing more."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.server.http_server import http_server
from tests.server.served import KEY, datum, sample_body
from tests.server.toy_engine import ToyEngine
from tinkerlite.types import ForwardBackwardRequest
from tinkerlite.wire import PROTOBUF_CONTENT_TYPE, encode_forward_backward_request
from tinkerlite_server.app import create_app
from tinkerlite_server.settings import Limits, Settings

LIMIT = 2**20
HEAD = f"Host: server\r\nX-API-Key: {KEY}\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), limits=Limits(max_body_bytes=LIMIT))
    with http_server(create_app(settings, ToyEngine())) as running:
        yield running


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{url}/api/v1", headers={"X-API-Key": KEY}, timeout=60) as client:
        yield client


def say(url: str, text: str | bytes, *, hang_up: bool = False, until_closed: bool = True) -> bytes:
    """Send bytes as they are; what comes back, until the server closes or (not `until_closed`) answers.

    Args:
        hang_up: say that nothing more will come.
    """
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(text.encode() if isinstance(text, str) else text)
        if hang_up:
            connection.shutdown(socket.SHUT_WR)
        heard = b""
        while piece := connection.recv(65536):
            heard += piece
            if b"\r\n\r\n" in heard and not until_closed:
                break
        return heard


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def is_alive(http: httpx.Client) -> bool:
    return http.post("/create_session", json={}).status_code == 200


def test_a_body_in_chunks_without_a_length_is_read(url: str, http: httpx.Client):
    request = (
        f"POST /api/v1/create_session HTTP/1.1\r\n{HEAD}Transfer-Encoding: chunked\r\n"
        'Connection: close\r\n\r\n3\r\n{"t\r\n9\r\nags": []}\r\n0\r\n\r\n'
    )
    assert status_of(say(url, request)) == 200


def test_a_body_shorter_than_its_length_is_given_up_with_the_connection(url: str, http: httpx.Client):
    request = f'POST /api/v1/create_session HTTP/1.1\r\n{HEAD}Content-Length: 100\r\n\r\n{{"tags"'
    assert b" 200 " not in say(url, request, hang_up=True)
    assert is_alive(http)


def test_a_body_longer_than_its_length_is_cut_there_or_refused(url: str, http: httpx.Client):
    """What follows reads as the next request, and is none; parsers differ in when they say so."""
    request = f"POST /api/v1/create_session HTTP/1.1\r\n{HEAD}Content-Length: 2\r\n\r\n{{}}and more\r\n\r\n"
    answers = say(url, request)
    assert status_of(answers) in (200, 400)
    assert b"HTTP/1.1 400" in answers
    assert is_alive(http)


@pytest.mark.parametrize("length", ["-1", "abc", "1e3", "99999999999999999999999999"])
def test_a_length_that_is_no_number_or_no_size_is_refused(url: str, http: httpx.Client, length: str):
    request = f"POST /api/v1/create_session HTTP/1.1\r\n{HEAD}Content-Length: {length}\r\n\r\n{{}}"
    answer = say(url, request)
    assert not answer or status_of(answer) == 400
    assert is_alive(http)


def test_a_chunk_that_is_no_chunk_ends_the_connection_alone(url: str, http: httpx.Client):
    head = f"POST /api/v1/create_session HTTP/1.1\r\n{HEAD}Transfer-Encoding: chunked\r\n\r\n"
    request = f"{head}zz\r\nnonsense"
    answer = say(url, request)
    assert not answer or 400 <= status_of(answer) < 500
    assert is_alive(http)


def test_a_body_beyond_the_bound_is_refused_before_all_of_it_has_come(url: str, http: httpx.Client):
    """The rest is never sent, and the answer comes all the same."""
    announced = f"POST /api/v1/create_session HTTP/1.1\r\n{HEAD}Content-Length: {100 * LIMIT}\r\n\r\n"
    answer = say(url, announced.encode() + b" " * (2 * LIMIT), until_closed=False)
    assert status_of(answer) == 413
    assert is_alive(http)


@pytest.mark.parametrize("host", ["[", "[::1", "a b", "", "\u00e9", "x" * 5000, "host:port"])
def test_an_odd_host_header_never_breaks_an_answer(url: str, http: httpx.Client, host: str):
    for path in ("healthz", "nothing", "training_runs/x/checkpoints/weights/a/archive"):
        request = f"GET /api/v1/{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        answer = say(url, request.encode("latin-1"))
        assert status_of(answer) < 500, answer
    assert is_alive(http)


def test_every_refusal_has_a_body_and_its_length_or_clients_take_it_for_a_proxys(http: httpx.Client):
    """A 400 without one is asked again on a new connection."""
    refusals = [
        http.post("/create_session", content=b"{"),
        http.post("/create_session", content=b"{", headers={"Content-Type": "application/json"}),
        http.post("/asample", json={}),
        http.post("/asample", json=sample_body("nothing")),
        http.post("/forward_backward", content=b"\xff", headers={"Content-Type": PROTOBUF_CONTENT_TYPE}),
        http.post("/retrieve_future", json={"request_id": "nothing"}),
        http.get("/nothing"),
        http.get("/checkpoints?limit=0"),
        http.delete("/training_runs/x/checkpoints/a"),
        http.get("/downloads/x/archive.tar?expires=1&signature=x"),
        httpx.post(f"{http.base_url}create_session", json={}, headers={"Content-Encoding": "gzip"}),
    ]
    for response in refusals:
        assert 400 <= response.status_code < 500
        assert response.status_code != 409
        assert int(response.headers["content-length"]) == len(response.content) > 0
        assert response.json()["detail"]


def test_the_same_request_from_many_connections_at_once_runs_once(http: httpx.Client):
    session = http.post("/create_session", json={}).json()["session_id"]
    body = {"session_id": session, "model_seq_id": 0, "base_model": "toy", "lora_config": {"rank": 4}}
    created = http.post("/create_model", json=body).json()
    model = http.post("/retrieve_future", json=created).json()["model_id"]
    batch = encode_forward_backward_request(
        ForwardBackwardRequest(model_id=model, seq_id=1, data=[datum()], loss_fn="cross_entropy")
    )
    step = {"model_id": model, "seq_id": 2, "adam_params": {"learning_rate": 0.5}}
    sampler = {"session_id": session, "sampling_session_seq_id": 0, "base_model": "toy"}
    question = sample_body(http.post("/create_sampling_session", json=sampler).json()["sampling_session_id"])

    def submit(number: int) -> tuple[str, str, str]:
        with httpx.Client(base_url=http.base_url, headers={"X-API-Key": KEY}, timeout=60) as client:
            posts = [
                lambda: client.post(
                    "/forward_backward", content=batch, headers={"Content-Type": PROTOBUF_CONTENT_TYPE}
                ),
                lambda: client.post("/optim_step", json=step),
                lambda: client.post("/asample", json=question),
            ]
            # Each connection in another order, so that every request is somebody's first.
            order = [(number + offset) % 3 for offset in range(3)]
            answers = {which: posts[which]().json()["request_id"] for which in order}
            return answers[0], answers[1], answers[2]

    with ThreadPoolExecutor(12) as pool:
        submitted = set(pool.map(submit, range(24)))
    [(gradients, stepped, _)] = submitted
    assert http.post("/retrieve_future", json={"request_id": gradients}).json()["metrics"]["loss:sum"] > 0
    assert http.post("/retrieve_future", json={"request_id": stepped}).json()["metrics"]["step"] == 1.0


def test_json_of_many_megabytes_in_small_packets_does_not_hold_up_others(url: str, http: httpx.Client):
    """A slow sender has its own connection, and the others are answered meanwhile."""
    body = json.dumps({"tags": ["x" * 1000] * 500}).encode()
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as slow:
        head = f"POST /api/v1/create_session HTTP/1.1\r\n{HEAD}Content-Length: {len(body)}\r\n\r\n"
        slow.sendall(head.encode() + body[:1000])
        assert is_alive(http)
        slow.sendall(body[1000:])
        assert status_of(slow.recv(65536)) == 200


def test_a_downloads_link_leads_to_the_server_that_was_asked(http: httpx.Client, tmp_path: Path):
    session = http.post("/create_session", json={}).json()["session_id"]
    body = {"session_id": session, "model_seq_id": 0, "base_model": "toy", "lora_config": {"rank": 4}}
    http.post("/retrieve_future", json=http.post("/create_model", json=body).json())
    run = f"{session}:train:0"
    saved = http.post("/save_weights_external", json={"model_id": run, "seq_id": 1, "path": "a"}).json()
    http.post("/retrieve_future", json=saved)
    links = http.get(f"/training_runs/{run}/checkpoints/external_weights/a/external_weights_urls").json()
    for link in links["urls"].values():
        assert link.startswith(str(http.base_url))
        assert httpx.get(link).is_success
    archive = http.get(f"/training_runs/{run}/checkpoints/external_weights/a/archive")
    assert httpx.get(archive.headers["location"]).headers["content-type"] == "application/x-tar"
