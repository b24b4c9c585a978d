"""A server on loopback that has bad days: it answers from a script.

For what a healthy server never does: refuse, drop connections, send garbage, lose results. Without
a script it answers each request as the protocol says, with nothing behind it. Tests of what clients
and server do together use the real server.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import zstandard

from tinkerlite import ClientConfig, types
from tinkerlite.wire import (
    PROTOBUF_CONTENT_TYPE,
    decode_forward_backward_request,
    encode_forward_backward_output,
    encode_sample_response,
)

HASTY = ClientConfig(first_backoff_seconds=0.01, startup_timeout_seconds=0.2, reconnect_timeout_seconds=5.0)
"""Timeouts for tests: failures come back at once."""


@dataclass(frozen=True)
class Answer:
    """What to answer once. `drop` closes the connection instead; `after` waits for an event first."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    drop: bool = False
    after: threading.Event | None = None


PENDING = Answer(408, {"queue_state": "active"})


@dataclass(frozen=True)
class Received:
    """A request as it arrived."""

    method: str
    prefix: str
    path: str
    query: str
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def key(self) -> str:
        """The path; for `retrieve_future` with the request id, since each has a script of its own."""
        return f"result of {self.json['request_id']}" if self.path == "retrieve_future" else self.path

    @property
    def batch(self) -> types.ForwardBackwardRequest:
        is_compressed = self.headers.get("content-encoding") == "zstd"
        return decode_forward_backward_request(
            zstandard.decompress(self.content) if is_compressed else self.content
        )


class ScriptedServer:
    def __init__(self, url: str) -> None:
        self.url = url
        self.received: list[Received] = []
        self._script: dict[str, list[Answer]] = {}
        self._lock = threading.Lock()
        self._work: dict[str, Received] = {}

    def script(self, key: str, *answers: Answer) -> None:
        """Answer requests of this key with these, in order; then as usual."""
        self._script.setdefault(key, []).extend(answers)

    def sent(self, path: str) -> list[Received]:
        """What has arrived at one path."""
        return [request for request in self.received if request.path == path]

    def answer(self, request: Received) -> Answer:
        with self._lock:
            self.received.append(request)
            scripted = self._script.get(request.key)
            if scripted:
                return scripted.pop(0)
            return self._usual(request)

    def _usual(self, request: Received) -> Answer:
        path = request.path
        if path == "create_session":
            return Answer(body={"session_id": "session"})
        if path == "create_sampling_session":
            return Answer(body={"sampling_session_id": "session:sample:0"})
        if path == "get_info":
            return Answer(body={"model_id": request.json["model_id"], "model_data": {"model_name": "tiny"}})
        if path in (
            "create_model",
            "load_weights",
            "forward_backward",
            "optim_step",
            "save_weights",
            "asample",
        ):
            request_id = f"{path}-{len(self._work)}"
            self._work[request_id] = request
            return Answer(body={"request_id": request_id})
        if path == "retrieve_future":
            return self._result(self._work[request.json["request_id"]])
        return Answer(body={})

    def _result(self, work: Received) -> Answer:
        if work.path == "forward_backward":
            arrays = [
                {"logprobs": types.TensorData(np.full(datum.model_input.length, -1.0, dtype=np.float32))}
                for datum in work.batch.data
            ]
            total = float(sum(array["logprobs"].shape[0] for array in arrays))
            return protobuf(
                encode_forward_backward_output(
                    types.ForwardBackwardOutput("ArrayRecord", arrays, {"loss:sum": total})
                )
            )
        if work.path == "asample":
            return protobuf(encode_sample_response(sampled([1, 2])))
        if work.path == "save_weights":
            return Answer(body={"path": f"tinker://{work.json['model_id']}/weights/{work.json['path']}"})
        if "session_id" in work.json:
            return Answer(body={"model_id": f"session:train:{work.json['model_seq_id']}"})
        return Answer(body={})


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it becomes true within some seconds."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def sampled(tokens: list[int]) -> types.SampleResponse:
    ids = np.asarray(tokens, dtype=np.int32)
    sequence = types.SampledSequence("stop", ids, np.full(len(tokens), -0.5, dtype=np.float32))
    return types.SampleResponse([sequence])


def protobuf(content: bytes) -> Answer:
    return Answer(body=content, headers={"Content-Type": PROTOBUF_CONTENT_TYPE})


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    http = _Http(("127.0.0.1", 0), _Handler)
    server = ScriptedServer(f"http://127.0.0.1:{http.server_port}")
    http.answer = server.answer
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    answer: Any

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave in the middle are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_any(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url, _, query = self.path.partition("?")
        prefix, _, path = url.partition("/api/v1/")
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer: Answer = self.server.answer(  # type: ignore[attr-defined]
            Received(self.command, prefix, path, query, headers, content)
        )
        if answer.after is not None:
            answer.after.wait(60)
        if answer.drop:
            self.close_connection = True
            return
        is_bytes = isinstance(answer.body, bytes)
        body = answer.body if is_bytes else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = handle_any

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""
