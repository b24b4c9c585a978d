"""A server far away asks for compressed bodies; it gets them where zstandard is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tinkerlite
from tests.client.scripted_server import HASTY, Answer, Received, ScriptedServer
from tests.client.test_end_to_end import STEP, datum
from tests.server.http_server import http_server
from tinkerlite import compression
from tinkerlite_server.app import create_app
from tinkerlite_server.engine.catalog import build_catalog
from tinkerlite_server.engine.local_engine import LocalEngine
from tinkerlite_server.engine.protocols import EngineLimits
from tinkerlite_server.settings import Settings

BATCH = [datum()] * 50


@pytest.fixture
def no_zstandard(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An environment without the package."""
    monkeypatch.setitem(sys.modules, "zstandard", None)
    compression._zstandard.cache_clear()
    yield
    compression._zstandard.cache_clear()


def batches(server: ScriptedServer, **asked: object) -> list[Received]:
    """Two batches as they arrived at a server that asks its clients for this."""
    server.script("client/config", Answer(body=asked))
    with tinkerlite.ServiceClient(base_url=server.url, config=HASTY) as service:
        training = service.create_lora_training_client("tiny")
        for _ in range(2):
            training.forward_backward(BATCH, "cross_entropy").result()
    return server.sent("forward_backward")


def test_a_server_that_asks_for_it_gets_each_batch_compressed(server: ScriptedServer):
    sent = batches(server, proto_compress_fwdbwd=True)
    assert [each.headers["content-encoding"] for each in sent] == ["zstd", "zstd"]
    assert [len(each.batch.data) for each in sent] == [50, 50]
    assert all(len(each.content) < 2000 for each in sent)


@pytest.mark.usefixtures("no_zstandard")
def test_without_the_package_it_gets_them_plain(server: ScriptedServer):
    sent = batches(server, proto_compress_fwdbwd=True)
    assert not [each for each in sent if "content-encoding" in each.headers]
    assert [len(each.batch.data) for each in sent] == [50, 50]


def test_a_server_that_does_not_ask_gets_them_plain(server: ScriptedServer):
    sent = batches(server)
    assert not [each for each in sent if "content-encoding" in each.headers]
    assert all(len(each.content) > 2000 for each in sent)


def gradients(service: tinkerlite.ServiceClient, base_model: Path) -> tuple[list[float], float]:
    """What a batch gives: the logprobs of its first datum, and the norm of the gradients."""
    training = service.create_lora_training_client(str(base_model), rank=4, seed=0)
    output = training.forward_backward(BATCH, "cross_entropy").result()
    metrics = training.optim_step(STEP).result().metrics
    assert metrics is not None
    return output.loss_fn_outputs[0]["logprobs"].to_numpy().tolist(), metrics["grad_norm"]


def test_a_batch_trains_the_same_compressed_and_plain(
    local_service: tinkerlite.ServiceClient,
    student_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    limits = EngineLimits(dtype="float32")
    engine = LocalEngine(build_catalog([str(student_folder)], limits), limits)
    app = create_app(Settings(data_dir=tmp_path, far_clients=True), engine)
    compressions: list[int] = []

    def noted(content: bytes) -> bytes | None:
        smaller = compression.compressed(content)
        compressions.append(len(content) - len(smaller or content))
        return smaller

    monkeypatch.setattr("tinkerlite.batches.compressed", noted)
    with http_server(app) as url, tinkerlite.ServiceClient(base_url=url) as service:
        logprobs, norm = gradients(service, student_folder)
    assert [saved > 0 for saved in compressions] == [True]
    plain, plain_norm = gradients(local_service, student_folder)
    assert compressions[1:] == []
    np.testing.assert_allclose(logprobs, plain, atol=1e-5)
    assert norm == pytest.approx(plain_norm, rel=1e-4)
