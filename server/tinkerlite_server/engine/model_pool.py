"""ModelPool: base models by name, loaded on first use, evicted least recently used first.

Eviction frees a base model's weights as soon as no pass uses them; runs and adapters of it keep their
own, and it loads again when they are next used.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from weakref import WeakValueDictionary

import torch

from tinkerlite_server.engine.base_model import BaseModel
from tinkerlite_server.engine.catalog import resolve_device
from tinkerlite_server.engine.cuda_settings import settle_kernels
from tinkerlite_server.engine.model_tokenizer import ModelTokenizer
from tinkerlite_server.engine.protocols import EngineLimits, ModelInfo
from tinkerlite_server.errors import BadRequest, EngineFailure, ServerError, UnknownName

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


RETRY_SECONDS = 30.0
"""A model that did not load is tried again after this long: memory may be free by then."""


class ModelPool:
    """The base models in memory, within a budget of bytes."""

    def __init__(self, catalog: Mapping[str, ModelInfo], limits: EngineLimits) -> None:
        self.catalog = catalog
        self.device = torch.device(resolve_device(limits.device))
        if self.device.type == "cuda":
            settle_kernels()
        self._budget = limits.max_models_bytes
        self._models: OrderedDict[str, BaseModel] = OrderedDict()
        self._alive: WeakValueDictionary[str, BaseModel] = WeakValueDictionary()
        self._failed: dict[str, tuple[float, type[ServerError], str]] = {}
        """Models that did not load: when that was, and what is said of it."""
        self._tokenizers: dict[str, ModelTokenizer] = {}
        self._loading_tokenizer = threading.Lock()

    def get(self, name: str) -> BaseModel:
        """The model, loaded if need be.

        Raises:
            UnknownName: this server does not offer it.
            BadRequest, EngineFailure: it does not load.
        """
        info = self.info(name)
        model = self._alive.get(name)  # an evicted one may still be in use
        if model is None:
            self._evict(self._budget - _weight_bytes(info))  # before its weights need the room
            self._alive[name] = model = self._load(info)
        self._models[name] = model
        self._models.move_to_end(name)
        self._evict(self._budget, keep=1)
        return model

    def _evict(self, most_bytes: int, *, keep: int = 0) -> None:
        """The least recently used, until the others have no more than that."""
        while self.loaded_bytes > most_bytes and len(self._models) > keep:
            oldest = next(iter(self._models))
            del self._models[oldest]
            logger.info("evicted %s to stay within %d bytes of base models", oldest, self._budget)

    def _load(self, info: ModelInfo) -> BaseModel:
        started = time.monotonic()
        failed_at, kind, why = self._failed.get(info.name, (-math.inf, ServerError, ""))
        if started < failed_at + RETRY_SECONDS:  # or each queued request would load all of it again
            raise kind(why)
        try:
            model = BaseModel(info, self.device, DTYPES[info.dtype])
        except Exception as error:
            kind, why = BadRequest, str(error)  # it says what is wrong with the model
            if not isinstance(error, BadRequest):
                kind = EngineFailure
                why = f"base model {info.name!r} does not load: {type(error).__name__}: {error}"
            self._failed[info.name] = (time.monotonic(), kind, why)
            raise kind(why) from error
        logger.info("loaded %s (%s) in %.1f s", info.name, info.dtype, time.monotonic() - started)
        return model

    def tokenizer(self, name: str) -> ModelTokenizer:
        """The model's tokenizer, loaded if need be and kept. Safe from any thread.

        Raises:
            UnknownName: this server does not offer the model.
        """
        info = self.info(name)
        with self._loading_tokenizer:
            if name not in self._tokenizers:
                self._tokenizers[name] = ModelTokenizer(info.folder)
            return self._tokenizers[name]

    def info(self, name: str) -> ModelInfo:
        """What is known of a model without its weights.

        Raises:
            UnknownName: this server does not offer it.
        """
        if name not in self.catalog:
            raise UnknownName(
                f"base model {name!r} is not offered here; this server has {sorted(self.catalog)}"
            )
        return self.catalog[name]

    @property
    def loaded_bytes(self) -> int:
        """Bytes of the base weights that are kept."""
        return sum(model.parameter_bytes for model in self._models.values())


def _weight_bytes(info: ModelInfo) -> int:
    """What a model's weights take in memory, at least, by the size of its files."""
    stored = sum(file.stat().st_size for file in info.folder.glob("*.safetensors"))
    return stored * DTYPES[info.dtype].itemsize // 4
