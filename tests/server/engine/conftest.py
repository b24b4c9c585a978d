"""Tiny models and samplers that several files of tests use."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.server.engine.sampling import EXTRA_ROWS, VOCABULARY, make_adapter, make_sampler, model_of
from tests.tiny import Arch, make_tiny_model
from tinkerlite_server.engine.sampler import LocalSampler
from tinkerlite_server.engine.streams import Stream


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), vocab_size=VOCABULARY, extra_rows=EXTRA_ROWS)


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def any_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    arch: Arch = request.param
    return make_tiny_model(tmp_path_factory.mktemp(arch), arch=arch, tie_embeddings=arch != "qwen3")


@pytest.fixture
def rows_of_passes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[LocalSampler], list[int]]:
    """From now on, the rows of every pass through this sampler's model, as they happen."""

    def watch(sampler: LocalSampler) -> list[int]:
        rows: list[int] = []
        model = model_of(sampler, folder)
        hidden = model.hidden

        def counted(stream: Stream) -> torch.Tensor:
            rows.append(len(stream.input_ids_N))
            return hidden(stream)

        monkeypatch.setattr(model, "hidden", counted)
        return rows

    return watch


@pytest.fixture
def with_adapters(folder: Path) -> Callable[..., LocalSampler]:
    def make(**limits: Any) -> LocalSampler:
        sampler = make_sampler(folder, **limits)
        for seed, name in enumerate(["a", "b"]):
            sampler.add_adapter(name, str(folder), make_adapter(model_of(sampler, folder), seed))
        return sampler

    return make
