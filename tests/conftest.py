"""Fixtures for all tests: two tiny base models, and a client of the real server over them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import tinkerlite
from tests.tiny import make_tiny_model

# Tests state what fp32 on a CPU gives, on every machine; those of other dtypes and devices name them.
os.environ |= {"TINKERLITE_DEVICE": "cpu", "TINKERLITE_DTYPE": "float32"}


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "student")


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of another size, with the same tokenizer."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "teacher", hidden=96, seed=1)


@pytest.fixture(scope="session")
def local_service(student_folder: Path, teacher_folder: Path) -> Iterator[tinkerlite.ServiceClient]:
    """A client of the reference server, which runs in this process and offers both models."""
    with tinkerlite.ServiceClient(base_url=f"local://{student_folder},{teacher_folder}") as service:
        yield service
