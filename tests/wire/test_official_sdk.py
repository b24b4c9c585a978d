"""The official `tinker` SDK, unmodified, drives the server over real HTTP.

It lives in an environment of its own, since it pins other versions of what we use; the variable
TINKERLITE_OFFICIAL_PYTHON names that environment's interpreter.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from tests.tiny import make_tiny_model

from tinkerlite_server.local import LocalServer

SCRIPT = Path(__file__).with_name("official_sdk_loop.py")


@pytest.fixture
def official_python() -> str:
    interpreter = os.environ.get("TINKERLITE_OFFICIAL_PYTHON", "")
    if not Path(interpreter).is_file():
        pytest.skip("TINKERLITE_OFFICIAL_PYTHON names no interpreter with the official SDK installed")
    return interpreter


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(make_tiny_model(tmp_path / "tiny"))


@pytest.fixture
def url(model: str) -> Iterator[str]:
    config = uvicorn.Config(
        LocalServer([model]).app, port=0, log_level="warning", ws="none", timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    ready = threading.Event()
    startup = server.startup

    async def announce(*args: object, **kwargs: object) -> None:
        await startup(*args, **kwargs)  # type: ignore[arg-type]
        ready.set()

    server.startup = announce  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run)
    thread.start()
    assert ready.wait(60)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_the_official_sdk_samples_trains_saves_and_resumes(official_python: str, url: str, model: str):
    environment = os.environ | {"TINKER_API_KEY": "tml-any", "TINKER_TELEMETRY": "0"}
    finished = subprocess.run(
        [official_python, "-W", "error::FutureWarning", str(SCRIPT), url, model],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert finished.stdout.strip().endswith("done")
