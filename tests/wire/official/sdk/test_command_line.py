"""The SDK's own command, `tinker`: it fetches what is kept here, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lessons import STEP, lesson
from tinker import TrainingClient

TENSORS = "adapter_model.safetensors"
Command = Callable[..., Any]


@pytest.fixture
def tinker(url: str, tmp_path: Path) -> Command:
    """The command's answer in JSON; it is run in an empty folder."""

    def run(*arguments: str) -> Any:
        finished = subprocess.run(
            [sys.executable, "-m", "tinker.cli", "--format", "json", *arguments],
            env=os.environ | {"TINKER_BASE_URL": url},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return json.loads(finished.stdout)

    return run


@pytest.fixture
def trained(trainer: TrainingClient) -> TrainingClient:
    trainer.forward_backward([lesson()], "cross_entropy")
    trainer.optim_step(STEP).result()
    return trainer


def test_a_checkpoint_is_downloaded_whether_it_is_to_train_on_or_to_take_along(
    tinker: Command, trained: TrainingClient, tmp_path: Path
):
    folders = []
    for path in (trained.save_state("a").result().path, trained.save_weights_external("b").result().path):
        said = tinker("checkpoint", "download", path)
        folder = Path(said["destination"])
        assert folder.is_relative_to(tmp_path)
        assert said["file_size_bytes"] == sum(file.stat().st_size for file in folder.iterdir())
        folders.append(folder)
    one, other = ((folder / TENSORS).read_bytes() for folder in folders)
    assert one == other
    listed = tinker("checkpoint", "list", "--run-id", trained.model_id)["checkpoints"]
    assert {each["checkpoint_id"] for each in listed} == {"weights/a", "external_weights/b"}
