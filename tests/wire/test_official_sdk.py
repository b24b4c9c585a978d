"""The official `tinker` SDK, unmodified, drives the server over real HTTP.

It lives in an environment of its own, since it pins other versions of what we use; the variable
TINKERLITE_OFFICIAL_PYTHON names that environment's interpreter.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.server.server_process import server_process
from tests.tiny import make_tiny_model

SCRIPT = Path(__file__).with_name("official_sdk_loop.py")


@pytest.fixture
def official_python() -> str:
    interpreter = os.environ.get("TINKERLITE_OFFICIAL_PYTHON", "")
    if not Path(interpreter).is_file():
        pytest.skip("TINKERLITE_OFFICIAL_PYTHON names no interpreter with the official SDK installed")
    return interpreter


def test_the_official_sdk_samples_trains_saves_and_resumes(official_python: str, tmp_path: Path):
    model = str(make_tiny_model(tmp_path / "tiny"))
    environment = os.environ | {"TINKER_API_KEY": "tml-any", "TINKER_TELEMETRY": "0"}
    arguments = ("--model", model, "--port", "0", "--data-dir", str(tmp_path / "data"))
    with server_process(*arguments) as (_, url):
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
