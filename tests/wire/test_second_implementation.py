"""Our client on recorded traffic of a server that is not ours."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.client.scripted_server import Answer, Received, scripted_server
from tests.wire.second_implementation import TOKENS, loop

RECORDED: list[dict[str, Any]] = json.loads(Path(__file__).with_name("skyrl-0.3.0.json").read_text())


def key(exchange: dict[str, Any]) -> str:
    path, sent = exchange["path"], exchange["sent"]
    return f"result of {sent['request_id']}" if path == "retrieve_future" else path


def answer(exchange: dict[str, Any]) -> Answer:
    body = exchange.get("json", exchange.get("text"))
    if "base64" in exchange:
        body = base64.b64decode(exchange["base64"])
    return Answer(exchange["status"], body, {"Content-Type": exchange["type"]})


def test_our_client_samples_scores_trains_saves_and_resumes_on_skyrls_server():
    with scripted_server() as server:
        for exchange in RECORDED:
            server.script(key(exchange), answer(exchange))
        results = loop(server.url, "tml-any", "tiny")
        received = server.received
    first, second, third = results["losses"]
    assert first > second > third
    assert results["completions"] == [4, 4]
    assert results["resumed"] == pytest.approx(results["trained"], abs=1e-6)
    assert results["scored"][0] is None
    assert len(results["scored"]) == len(TOKENS)
    np.testing.assert_allclose(results["scored"][1:], results["trained"], atol=1e-3)
    # It sends today what the server took then.
    for path in {exchange["path"] for exchange in RECORDED} - {"retrieve_future"}:
        then = [each["sent"] for each in RECORDED if each["path"] == path]
        assert [content(each) for each in received if each.path == path] == then, path


def content(request: Received) -> Any:
    if "protobuf" in request.headers.get("content-type", ""):
        return "protobuf"
    return request.json if request.content else None
