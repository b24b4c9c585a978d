from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import tinkerlite
from tests.client.scripted_server import HASTY, ScriptedServer, scripted_server
from tests.server.http_server import http_server
from tinkerlite_server.app import create_app
from tinkerlite_server.engine.catalog import build_catalog
from tinkerlite_server.engine.local_engine import LocalEngine
from tinkerlite_server.engine.protocols import EngineLimits
from tinkerlite_server.settings import Settings


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BASE_URL", "API_KEY", "PROJECT_ID", "TAGS"):
        monkeypatch.delenv(f"TINKERLITE_{name}", raising=False)
        monkeypatch.delenv(f"TINKER_{name}", raising=False)


@pytest.fixture(scope="session", params=["http", "local"])
def real_server(
    request: pytest.FixtureRequest,
    local_service: tinkerlite.ServiceClient,
    student_folder: Path,
    teacher_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The URL of the reference server: once on a port, once without one."""
    if request.param == "local":
        yield f"local://{student_folder},{teacher_folder}"  # kept alive by `local_service`
        return
    limits = EngineLimits(dtype="float32")
    engine = LocalEngine(build_catalog([str(student_folder)], limits), limits)
    with http_server(create_app(Settings(data_dir=tmp_path_factory.mktemp("data")), engine)) as url:
        yield url


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
