"""The official SDK's custom losses: run here as it sends them, they train as those that it runs itself."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.server.server_process import server_process
from tests.tiny import make_tiny_model

SCRIPT = Path(__file__).with_name("official_sdk_custom_loss.py")


@pytest.fixture
def official_python() -> str:
    interpreter = os.environ.get("TINKERLITE_OFFICIAL_PYTHON", "")
    if not Path(interpreter).is_file():
        pytest.skip("TINKERLITE_OFFICIAL_PYTHON names no interpreter with the official SDK installed")
    # The SDK traces and differentiates losses with torch, and does without it otherwise.
    if subprocess.run([interpreter, "-c", "import torch"], capture_output=True, check=False).returncode != 0:
        pytest.skip("the environment of the official SDK has no torch; make setup makes it anew")
    return interpreter


def trained(python: str, side: str, model: str, data_dir: Path) -> list[Any]:
    """What the script says, of a server on which this side runs the losses."""
    flags = ["--custom-losses"] if side == "server" else []
    arguments = ("--model", model, "--port", "0", "--data-dir", str(data_dir), *flags)
    environment = os.environ | {"TINKER_API_KEY": "tml-any", "TINKER_TELEMETRY": "0"}
    with server_process(*arguments) as (_, url):
        finished = subprocess.run(
            [python, str(SCRIPT), url, model, side],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert finished.returncode == 0, finished.stderr[-4000:]
    return json.loads(finished.stdout)


def test_losses_run_by_the_server_train_as_those_run_by_the_sdk(official_python: str, tmp_path: Path):
    model = str(make_tiny_model(tmp_path / "tiny"))
    here = trained(official_python, "server", model, tmp_path / "here")
    there = trained(official_python, "client", model, tmp_path / "there")
    assert len(here) == len(there)
    for ours, theirs in zip(here, there, strict=True):
        assert_close(ours, theirs)


def assert_close(ours: Any, theirs: Any) -> None:
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        ours, theirs = list(ours.values()), list(theirs.values())
    if isinstance(ours, list):
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one, other)
    else:
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
