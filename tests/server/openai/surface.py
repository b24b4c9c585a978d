"""Callers of the OpenAI-compatible surface: in process, and over a port in this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.server.http_server import http_server
from tests.server.served import Caller
from tests.server.toy_engine import ToyEngine
from tinkerlite_server.app import create_app
from tinkerlite_server.engine.protocols import Engine, SampledToken, SampleResult
from tinkerlite_server.service import Service
from tinkerlite_server.settings import Limits, Settings

JSON = dict[str, Any]
HELLO = [{"role": "user", "content": "ab c"}]


def ask(caller: Caller, path: str, **body: Any) -> httpx.Response:
    return caller.request("POST", f"http://server/oai/api/v1{path}", json=body)


def chat(caller: Caller, **fields: Any) -> JSON:
    return answered(ask(caller, "/chat/completions", **chat_body(**fields)))


def complete(caller: Caller, **fields: Any) -> JSON:
    return answered(ask(caller, "/completions", **completion_body(**fields)))


def chat_body(**fields: Any) -> JSON:
    return {"model": "toy", "messages": HELLO, "temperature": 0, "max_tokens": 6} | fields


def completion_body(**fields: Any) -> JSON:
    return {"model": "toy", "prompt": "ab c", "temperature": 0, "max_tokens": 6} | fields


def answered(response: httpx.Response) -> JSON:
    assert response.status_code == 200, response.text
    return response.json()


def streamed(response: httpx.Response) -> list[JSON]:
    """The events of a stream that is over."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def events(lines: Iterable[str]) -> Iterator[JSON]:
    """The events of a stream that goes on, as they come."""
    for line in lines:
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


class PacedEngine(ToyEngine):
    """Samples one step for every permit, or freely."""

    def __init__(self) -> None:
        super().__init__()
        self.permits = threading.Semaphore(0)
        self.freely = False

    def step(self) -> list[SampleResult | SampledToken]:
        # Waits a moment only, since cancelling is done by the same thread.
        if self.freely or self.permits.acquire(timeout=0.02):
            return super().step()
        return []

    @property
    def sampling(self) -> int:
        """Requests that hold a place in the engine."""
        return len(self._running)


@contextmanager
def listening(engine: Engine, data_dir: Path, limits: Limits | None = None) -> Iterator[tuple[str, Service]]:
    """A server on a port of this machine, and its service."""
    app = create_app(Settings(data_dir=data_dir, limits=limits or Limits()), engine)
    with http_server(app) as url:
        yield url, app.state.service
