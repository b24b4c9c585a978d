from __future__ import annotations

from collections.abc import Iterator

import pytest

import tinkerlite
from tests.client.scripted_server import HASTY, ScriptedServer, scripted_server


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BASE_URL", "API_KEY", "PROJECT_ID", "TAGS"):
        monkeypatch.delenv(f"TINKERLITE_{name}", raising=False)
        monkeypatch.delenv(f"TINKER_{name}", raising=False)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


@pytest.fixture
def service(server: ScriptedServer) -> Iterator[tinkerlite.ServiceClient]:
    with tinkerlite.ServiceClient(base_url=server.url, config=HASTY) as client:
        yield client


@pytest.fixture
def training(service: tinkerlite.ServiceClient) -> tinkerlite.TrainingClient:
    return service.create_lora_training_client("tiny")


@pytest.fixture
def sampler(service: tinkerlite.ServiceClient) -> tinkerlite.SamplingClient:
    return service.create_sampling_client(base_model="tiny")
