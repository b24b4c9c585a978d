from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.served import Caller, Served, serving
from tests.server.toy_engine import ToyEngine


@pytest.fixture
def toy() -> ToyEngine:
    return ToyEngine()


@pytest.fixture
def served(toy: ToyEngine, tmp_path: Path) -> Iterator[Served]:
    with serving(toy, tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def lasting_caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    """Of a server that a module's tests share: for requests that are refused, and so change nothing."""
    with serving(ToyEngine(), tmp_path_factory.mktemp("data")) as running:
        yield running.caller()


@pytest.fixture
def caller(served: Served) -> Caller:
    return served.caller()
