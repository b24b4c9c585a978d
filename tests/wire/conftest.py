"""Where the official clients are, and what of this folder is theirs to run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

collect_ignore = ["official"]  # tests for another environment, which test_official_clients.py runs


@pytest.fixture(scope="session")
def official_python() -> Path:
    """The interpreter of an environment with the official SDK and cookbook; `make test` makes one."""
    interpreter = Path(os.environ.get("TINKERLITE_OFFICIAL_PYTHON", ""))
    if not interpreter.is_file():
        pytest.skip("TINKERLITE_OFFICIAL_PYTHON names no interpreter with the official SDK installed")
    return interpreter


@pytest.fixture(scope="session")
def older_sdks() -> Path:
    """A folder with one of older releases of the SDK in each subfolder."""
    folder = Path(os.environ.get("TINKERLITE_OLDER_SDKS", ""))
    if not folder.is_dir() or not any(folder.iterdir()):
        pytest.skip("TINKERLITE_OLDER_SDKS names no folder with older releases of the official SDK")
    return folder
