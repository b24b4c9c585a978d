"""Streams over real connections: tokens when they are sampled, and nothing for those who have gone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.server.eventual import eventually
from tests.server.openai.surface import (
    JSON,
    PacedEngine,
    chat_body,
    completion_body,
    events,
    listening,
)
from tinkerlite_server.errors import EngineFailure
from tinkerlite_server.service import Service
from tinkerlite_server.settings import Limits

PROMPT = [7]
"""The toy model's greedy continuation of it repeats one token for ever."""


@pytest.fixture
def engine() -> PacedEngine:
    return PacedEngine()


@pytest.fixture
def running(engine: PacedEngine, tmp_path: Path) -> Iterator[tuple[httpx.Client, Service]]:
    limits = Limits(max_queued_samples=20)
    with listening(engine, tmp_path, limits) as (url, service), httpx.Client(timeout=20) as http:
        http.base_url = f"{url}/oai/api/v1/"
        yield http, service


@pytest.fixture
def http(running: tuple[httpx.Client, Service]) -> httpx.Client:
    return running[0]


def test_each_token_is_sent_before_the_next_is_sampled(engine: PacedEngine, http: httpx.Client):
    body = completion_body(prompt=PROMPT, max_tokens=5, stream=True)
    engine.permits.release()
    with http.stream("POST", "completions", json=body) as response:
        coming = events(response.iter_lines())
        for number in range(1, 6):
            [choice] = next(coming)["choices"]
            assert choice["text"] == "f"
            assert engine.calls.count(("step",)) == number
            engine.permits.release()
        assert next(coming)["choices"][0]["finish_reason"] == "length"


def lines_of(http: httpx.Client, path: str, body: JSON, lines: list[str]) -> None:
    """A stream's lines, added as they come."""
    with http.stream("POST", path, json=body) as response:
        for line in response.iter_lines():
            if line:
                lines.append(line)


def test_two_streams_at_once_grow_together(engine: PacedEngine, http: httpx.Client):
    bodies = [completion_body(prompt=PROMPT, max_tokens=count, stream=True) for count in (4, 6)]
    lines: list[list[str]] = [[], []]
    with ThreadPoolExecutor() as pool:
        ends = [
            pool.submit(lines_of, http, "completions", body, mine)
            for body, mine in zip(bodies, lines, strict=True)
        ]
        eventually(lambda: engine.sampling == 2)
        for count in (1, 2, 3):
            engine.permits.release()
            eventually(lambda count=count: [len(each) for each in lines] == [count, count])
        engine.freely = True
        for end in ends:
            end.result(20)
    # Each has its tokens, its finish reason and [DONE].
    assert [len(each) for each in lines] == [4 + 2, 6 + 2]


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
@pytest.mark.parametrize("begun", [True, False])
def test_a_stream_that_is_cut_frees_its_places_at_once(
    engine: PacedEngine, running: tuple[httpx.Client, Service], path: str, begun: bool
):
    """Also before its first token, when there is nothing yet whose sending could fail."""
    http, service = running
    fields = {"n": 20, "max_tokens": 25, "stream": True}
    body = completion_body(prompt=PROMPT, **fields) if path == "completions" else chat_body(**fields)
    if begun:
        engine.permits.release()
        with http.stream("POST", path, json=body) as response:
            next(events(response.iter_lines()))
            assert engine.sampling == 1
    else:
        with pytest.raises(httpx.ReadTimeout):
            http.post(path, json=body, timeout=0.5)
    eventually(lambda: engine.sampling == 0)
    assert not service.futures._entries
    engine.freely = True
    # The queue holds twenty samples: it is empty, then.
    answer = http.post("completions", json=completion_body(prompt=PROMPT, n=20))
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_a_request_that_is_cut_frees_its_places_though_it_does_not_stream(
    engine: PacedEngine, running: tuple[httpx.Client, Service], path: str
):
    http, service = running
    body = completion_body(n=20) if path == "completions" else chat_body(n=20)
    with pytest.raises(httpx.ReadTimeout):
        http.post(path, json=body, timeout=0.5)
    eventually(lambda: engine.sampling == 0 and any(call[0] == "cancel" for call in engine.calls))
    eventually(lambda: not service.futures._entries)
    engine.freely = True
    assert http.post("completions", json=completion_body(n=20)).status_code == 200


def test_one_that_still_waits_in_its_line_is_withdrawn(engine: PacedEngine, tmp_path: Path):
    limits = Limits(sampler_window=1, max_queued_samples=2)
    with listening(engine, tmp_path, limits) as (url, service), httpx.Client(timeout=20) as http:
        http.base_url = f"{url}/oai/api/v1/"
        with ThreadPoolExecutor() as pool:
            first = pool.submit(http.post, "completions", json=completion_body())
            eventually(lambda: engine.sampling == 1)
            with pytest.raises(httpx.ReadTimeout):
                http.post("completions", json=completion_body(stream=True), timeout=0.5)
            eventually(lambda: len(service.futures._entries) == 1)
            assert engine.sampling == 1
            engine.freely = True
            assert first.result(20).status_code == 200


def test_what_fails_in_the_middle_of_a_stream_is_its_last_event(engine: PacedEngine, http: httpx.Client):
    body = completion_body(prompt=PROMPT, max_tokens=5, stream=True)
    engine.permits.release()
    with http.stream("POST", "completions", json=body) as response:
        lines = (line for line in response.iter_lines() if line)
        next(lines)
        engine.failures["step"] = EngineFailure("out of memory")
        engine.permits.release()
        error = json.loads(next(lines).removeprefix("data: "))["error"]
        assert error["type"] == "server_error"
        assert "out of memory" in error["message"]
        assert next(lines) == "data: [DONE]"
    engine.freely = True
    assert http.post("completions", json=completion_body()).status_code == 200


def test_a_stop_of_the_server_ends_streams_and_says_so(
    engine: PacedEngine, running: tuple[httpx.Client, Service]
):
    http, service = running
    said: list[str] = []
    body = completion_body(prompt=PROMPT, max_tokens=25)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(http.post, "completions", json=body)
        stream = pool.submit(lines_of, http, "completions", {**body, "stream": True}, said)
        eventually(lambda: engine.sampling == 2)
        engine.permits.release()
        eventually(lambda: len(said) == 1)
        service.begin_shutdown()
        stream.result(20)
        assert waiting.result(20).status_code == 503
    assert "stopping" in json.loads(said[-2].removeprefix("data: "))["error"]["message"]
    assert said[-1] == "data: [DONE]"
