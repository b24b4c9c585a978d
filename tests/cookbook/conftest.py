"""Fixtures of the cookbook's tests: a tiny model's folder, its tokenizer, and the ChatML renderer."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from cookbook.renderers import Renderer, chatml
from tests.tiny import make_tiny_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tokenizer(tiny_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture(scope="session")
def renderer(tokenizer: Any) -> Renderer:
    return chatml(tokenizer)
