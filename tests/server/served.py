"""A server in this process, and a caller of it: plain HTTP calls over an in-process transport.

The server is the real one in every part but the engine, which each test chooses.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np

from tinkerlite.types import (
    Datum,
    ForwardBackwardOutput,
    ForwardBackwardRequest,
    ModelInput,
    SampleResponse,
    TensorData,
)
from tinkerlite.wire import (
    PROTOBUF_CONTENT_TYPE,
    decode_forward_backward_output,
    decode_sample_response,
    encode_forward_backward_request,
)
from tinkerlite_server.app import create_app
from tinkerlite_server.engine.protocols import Engine
from tinkerlite_server.settings import Limits, Settings

T = TypeVar("T")

KEY = "tml-test"
JSON = dict[str, Any]


class Served:
    """A running server and the event loop it runs in."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self.app = create_app(settings, engine)
        self.service = self.app.state.service
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="server loop")
        self._thread.start()
        self.call(self.service.startup())
        transport = httpx.ASGITransport(self.app)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://server/api/v1", timeout=30)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def close(self) -> None:
        self.call(self.http.aclose())
        self.call(self.service.shutdown())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def caller(self, key: str | None = KEY) -> Caller:
        return Caller(self, key)


@contextmanager
def serving(
    engine: Engine,
    data_dir: Path,
    *,
    api_keys: Sequence[str] = (),
    limits: Limits | None = None,
    custom_losses: bool = False,
) -> Iterator[Served]:
    settings = Settings(
        data_dir=data_dir,
        api_keys=tuple(api_keys),
        limits=limits or Limits(),
        custom_losses=custom_losses,
    )
    served = Served(settings, engine)
    try:
        yield served
    finally:
        served.close()


@dataclass(eq=False)
class Caller:
    """Someone with an API key."""

    server: Served
    key: str | None

    # ---- bare requests ----

    def request(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        headers = {"X-API-Key": self.key} if self.key is not None else {}
        headers |= kwargs.pop("headers", {})
        return self.server.call(self.server.http.request(method, path, headers=headers, **kwargs))

    def get(self, path: str) -> httpx.Response:
        return self.request("GET", path)

    def post(self, path: str, /, **body: Any) -> httpx.Response:
        return self.request("POST", path, json=body)

    def ok(self, path: str, /, **body: Any) -> JSON:
        response = self.post(path, **body)
        assert response.status_code == 200, response.text
        return response.json()

    def refused(self, path: str, /, status: int = 400, **body: Any) -> str:
        """The message of a refusal."""
        response = self.post(path, **body)
        assert response.status_code == status, (response.status_code, response.text)
        assert int(response.headers["content-length"]) == len(response.content) > 0
        return response.json()["detail"]

    # ---- futures ----

    def retrieve(self, request_id: str) -> httpx.Response:
        headers = {"Accept": PROTOBUF_CONTENT_TYPE}
        return self.request("POST", "/retrieve_future", json={"request_id": request_id}, headers=headers)

    def result(self, request_id: str) -> JSON:
        """A JSON result; a failed one has "error" and "category"."""
        response = self.retrieve(request_id)
        assert response.status_code == 200, response.text
        return response.json()

    def failure(self, request_id: str) -> tuple[str, str]:
        """Message and category of a failed request."""
        result = self.result(request_id)
        return result["error"], result["category"]

    # ---- the protocol ----

    def session(self) -> str:
        return self.ok("/create_session", tags=[], sdk_version="test")["session_id"]

    def submit_model(self, session: str, number: int = 0, base_model: str = "toy", rank: int = 4) -> str:
        return self.ok(
            "/create_model",
            session_id=session,
            model_seq_id=number,
            base_model=base_model,
            lora_config={"rank": rank, "seed": 1},
        )["request_id"]

    def model(self, session: str | None = None, number: int = 0, base_model: str = "toy") -> str:
        """A training run's id."""
        request_id = self.submit_model(session or self.session(), number, base_model)
        return self.result(request_id)["model_id"]

    def post_forward_backward(
        self,
        model_id: str,
        seq_id: int,
        data: Sequence[Datum] | None = None,
        loss_fn: str = "cross_entropy",
        *,
        forward_only: bool = False,
        loss_fn_config: dict[str, float | str] | None = None,
    ) -> httpx.Response:
        request = ForwardBackwardRequest(
            model_id=model_id,
            seq_id=seq_id,
            data=list(data if data is not None else [datum()]),
            loss_fn=loss_fn,
            loss_fn_config=loss_fn_config or {},
            forward_only=forward_only,
        )
        body = encode_forward_backward_request(request)
        headers = {"Content-Type": PROTOBUF_CONTENT_TYPE}
        return self.request("POST", "/forward_backward", content=body, headers=headers)

    def forward_backward(self, model_id: str, seq_id: int, *args: Any, **kwargs: Any) -> str:
        response = self.post_forward_backward(model_id, seq_id, *args, **kwargs)
        assert response.status_code == 200, response.text
        return response.json()["request_id"]

    def gradients(self, request_id: str) -> ForwardBackwardOutput:
        response = self.retrieve(request_id)
        assert response.headers["content-type"] == PROTOBUF_CONTENT_TYPE, response.text
        return decode_forward_backward_output(response.content)

    def optim_step(self, model_id: str, seq_id: int, learning_rate: float = 0.5) -> str:
        return self.ok(
            "/optim_step", model_id=model_id, seq_id=seq_id, adam_params={"learning_rate": learning_rate}
        )["request_id"]

    def save(self, model_id: str, seq_id: int, name: str, **options: Any) -> JSON:
        answer = self.ok("/save_weights", model_id=model_id, seq_id=seq_id, path=name, **options)
        return self.result(answer["request_id"])

    def snapshot(self, model_id: str, seq_id: int, number: int) -> str:
        """The id of a sampling session on a run's weights of now."""
        answer = self.ok(
            "/save_weights_for_sampler", model_id=model_id, seq_id=seq_id, sampling_session_seq_id=number
        )
        return self.result(answer["request_id"])["sampling_session_id"]

    def sampler(self, session: str | None = None, number: int = 0, **of: str) -> str:
        """The id of a sampling session on a base model or saved weights."""
        body = of or {"base_model": "toy"}
        return self.ok(
            "/create_sampling_session",
            session_id=session or self.session(),
            sampling_session_seq_id=number,
            **body,
        )["sampling_session_id"]

    def submit_sample(self, sampler: str, seq_id: int = 0, **fields: Any) -> JSON:
        return self.ok("/asample", **sample_body(sampler, seq_id, **fields))

    def sample(self, sampler: str, seq_id: int = 0, **fields: Any) -> SampleResponse:
        answer = self.submit_sample(sampler, seq_id, **fields)
        response = self.retrieve(answer["request_id"])
        assert response.headers["content-type"] == PROTOBUF_CONTENT_TYPE, response.text
        return decode_sample_response(response.content, answer["sample_sequence_ids"])


def sample_body(sampler: str, seq_id: int = 0, **fields: Any) -> JSON:
    return {
        "sampling_session_id": sampler,
        "seq_id": seq_id,
        "num_samples": 1,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
        "sampling_params": {"max_tokens": 4, "temperature": 0.0},
    } | fields


def datum(tokens: Sequence[int] = (1, 2, 3), targets: Any = (2, 3, 4), **inputs: Any) -> Datum:
    """A datum for cross_entropy, unless other inputs are named."""
    targets = targets if isinstance(targets, TensorData) else TensorData(targets, "int64")
    fields = inputs or {"weights": np.ones(targets.shape, np.float32)}
    return Datum(ModelInput.from_ints(tokens), {"target_tokens": targets, **fields})
