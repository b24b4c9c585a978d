"""Base models in memory: loaded once, evicted within a budget, never two copies of one."""

import gc
from typing import Any
from weakref import ref

import pytest

from tests.tiny import make_tiny_model
from tinkerlite_server.engine import model_pool
from tinkerlite_server.engine.base_model import BaseModel
from tinkerlite_server.engine.catalog import build_catalog
from tinkerlite_server.engine.model_pool import ModelPool
from tinkerlite_server.engine.protocols import EngineLimits, ModelInfo
from tinkerlite_server.errors import BadRequest, EngineFailure


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pool")
    return [str(make_tiny_model(folder / name, seed=seed)) for seed, name in enumerate(("one", "other"))]


def pool(names: list[str], **limits: int) -> ModelPool:
    settings = EngineLimits(device="cpu", dtype="float32", **limits)
    return ModelPool(build_catalog(names, settings), settings)


def test_models_within_the_budget_stay(names: list[str]):
    models = pool(names)
    assert models.get(names[0]) is models.get(names[0])
    models.get(names[1])
    assert models.loaded_bytes == sum(models.get(name).parameter_bytes for name in names)


def test_beyond_the_budget_the_least_recently_used_goes_and_its_memory_with_it(names: list[str]):
    models = pool(names, max_models_bytes=1)
    first = ref(models.get(names[0]))
    assert models.loaded_bytes == models.get(names[1]).parameter_bytes
    gc.collect()
    assert first() is None


def test_room_is_made_before_a_model_is_loaded_into_it(names: list[str], monkeypatch: pytest.MonkeyPatch):
    """Both at once may be more than there is."""
    models = pool(names, max_models_bytes=1)
    models.get(names[0])
    held: list[int] = []

    class Watched(BaseModel):
        def __init__(self, *arguments: Any) -> None:
            held.append(models.loaded_bytes)
            super().__init__(*arguments)

    monkeypatch.setattr(model_pool, "BaseModel", Watched)
    models.get(names[1])
    assert held == [0]


def test_a_model_that_does_not_load_is_not_loaded_again_for_each_who_asks(
    names: list[str], monkeypatch: pytest.MonkeyPatch
):
    models = pool(names)
    tries: list[str] = []

    def load(info: ModelInfo, *_: object) -> None:
        tries.append(info.name)
        raise MemoryError("no room")

    monkeypatch.setattr(model_pool, "BaseModel", load)
    for _ in range(3):
        with pytest.raises(EngineFailure, match="does not load: MemoryError: no room"):
            models.get(names[0])
    assert tries == [names[0]]
    monkeypatch.undo()
    with pytest.raises(EngineFailure):
        models.get(names[0])
    monkeypatch.setattr(model_pool, "RETRY_SECONDS", 0.0)
    assert models.get(names[0]).parameter_bytes


def test_what_is_wrong_with_a_model_itself_is_the_callers_error_each_time(
    names: list[str], monkeypatch: pytest.MonkeyPatch
):
    models = pool(names)

    def refuse(*_: object) -> None:
        raise BadRequest("it scales its logits")

    monkeypatch.setattr(model_pool, "BaseModel", refuse)
    for _ in range(2):
        with pytest.raises(BadRequest, match=r"^it scales its logits$"):
            models.get(names[0])


def test_a_model_that_is_evicted_in_use_is_taken_back_and_not_loaded_beside_itself(names: list[str]):
    models = pool(names, max_models_bytes=1)
    in_use = models.get(names[0])
    models.get(names[1])
    assert models.get(names[0]) is in_use
