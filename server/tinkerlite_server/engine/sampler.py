"""LocalSampler: makes tokens in this process.

Resolves what a request names (base model, adapter, tokenizer) and hands it to the batcher of
its base model (batcher.py). The weights of a full run are a model of their own in place of an
adapter, under the same kind of id, and have a batcher of their own. A request holds what it
resolved: dropping an adapter hides its name at once and frees it when the last request that
uses it ends.
"""

from __future__ import annotations

from pathlib import Path

from tinkerlite_server.engine.adapter_loading import load_adapter
from tinkerlite_server.engine.base_model import BaseModel
from tinkerlite_server.engine.batcher import Batcher, as_server_error
from tinkerlite_server.engine.full_files import holds_whole_model
from tinkerlite_server.engine.full_model import load_frozen
from tinkerlite_server.engine.lora import Adapter
from tinkerlite_server.engine.model_pool import DTYPES, ModelPool
from tinkerlite_server.engine.prefix_cache import PrefixCache
from tinkerlite_server.engine.protocols import EngineLimits, SampledToken, SampleResult, SampleWork
from tinkerlite_server.engine.samples import Job
from tinkerlite_server.engine.stops import StopRule, StopStrings
from tinkerlite_server.errors import BadRequest, UnknownName


class LocalSampler:
    """Implements `Sampler` on this machine."""

    def __init__(self, pool: ModelPool, limits: EngineLimits) -> None:
        self._pool = pool
        self._limits = limits
        self._adapters: dict[str, tuple[str, Adapter | BaseModel]] = {}
        """By id: the base model's name, and the factors or a full run's weights."""
        self._batchers: dict[tuple[str, str | None], Batcher] = {}
        """By base model, and id where a full run's weights take its place; only those with work, so that
        an idle model can be evicted."""
        self._prefixes = PrefixCache(limits.max_prefix_bytes)
        """Outlives the batchers: a conversation pauses between its turns."""
        self._refused: list[SampleResult] = []

    # ---- adapters ----

    def add_adapter(self, adapter_id: str, base_model: str, adapter: Adapter | BaseModel) -> None:
        """Make an adapter in memory available; requests already submitted keep the one they had."""
        self._adapters[adapter_id] = (base_model, adapter)

    def load_adapter(self, adapter_id: str, base_model: str, folder: Path) -> None:
        """Make a saved adapter, or a whole model, available under this id.

        Raises:
            BadRequest: it does not fit the base model, or is neither.
        """
        self.add_adapter(adapter_id, base_model, self.read_weights(base_model, folder))

    def read_weights(self, base_model: str, folder: Path) -> Adapter | BaseModel:
        """What a folder holds, without a name.

        Raises:
            BadRequest: as `load_adapter`.
        """
        if holds_whole_model(folder):
            info = self._pool.info(base_model)
            return load_frozen(info, self._pool.device, DTYPES[info.dtype], folder)
        return load_adapter(self._pool.get(base_model), folder, trainable=False)

    def drop_adapter(self, adapter_id: str) -> None:
        """Free an adapter once no submitted work uses it; unknown ids are ignored."""
        self._adapters.pop(adapter_id, None)

    def has_adapter(self, adapter_id: str) -> bool:
        """Whether `add_adapter` or `load_adapter` made it available."""
        return adapter_id in self._adapters

    @property
    def full_ids(self) -> tuple[str, ...]:
        """Ids of weights that are whole models."""
        return tuple(id_ for id_, (_, each) in self._adapters.items() if isinstance(each, BaseModel))

    @property
    def full_bytes(self) -> int:
        """What whole models take here, those included that only running samples still hold."""
        models = [weights for _, weights in self._adapters.values() if isinstance(weights, BaseModel)]
        models += [batcher.model for (_, id_), batcher in self._batchers.items() if id_ is not None]
        return sum(model.parameter_bytes for model in {id(model): model for model in models}.values())

    # ---- requests ----

    def submit(self, work: SampleWork) -> None:
        """Queue work, and load its base model if need be. What it gets wrong comes back as its result."""
        try:
            weights = self._adapter(work)
            if isinstance(weights, BaseModel):
                key, job = (work.base_model, work.adapter_id), self._job(work, None)
            else:
                key, job = (work.base_model, None), self._job(work, weights)
            if key not in self._batchers:
                model = weights if isinstance(weights, BaseModel) else self._pool.get(work.base_model)
                self._batchers[key] = Batcher(model, self._limits, self._prefixes)
            self._batchers[key].submit(job)
        except Exception as error:  # noqa: BLE001 - recorded as this request's failure; others go on
            self._refused.append(SampleResult(work.key, as_server_error(error, "preparing to sample")))

    def cancel(self, key: str) -> None:
        """Forget work; it yields no result. Unknown keys are ignored."""
        self._refused = [result for result in self._refused if result.key != key]
        for batcher in self._batchers.values():
            batcher.cancel(key)
        self._let_idle_go()

    def step(self) -> list[SampleResult | SampledToken]:
        """One step of every base model that has work; new tokens to report, and what finished."""
        results: list[SampleResult | SampledToken] = [*self._refused]
        self._refused = []
        for batcher in self._batchers.values():
            results += batcher.step()
        self._let_idle_go()
        return results

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return bool(self._refused) or any(batcher.has_work for batcher in self._batchers.values())

    def _let_idle_go(self) -> None:
        """An idle batcher holds a model and a cache that others may need."""
        for batcher in self._batchers.values():
            if not batcher.has_work:
                batcher.rest()
        self._batchers = {key: batcher for key, batcher in self._batchers.items() if batcher.has_work}

    def _job(self, work: SampleWork, adapter: Adapter | None) -> Job:
        strings = None
        if work.stop_strings:
            strings = StopStrings(work.stop_strings, self._pool.tokenizer(work.base_model))
        stop = StopRule(max_tokens=work.max_tokens, stop_ids=work.stop_ids, strings=strings)
        return Job(work, adapter, stop)

    def _adapter(self, work: SampleWork) -> Adapter | BaseModel | None:
        if work.adapter_id is None:
            return None
        if work.adapter_id not in self._adapters:
            raise UnknownName(
                f"sampler weights {work.adapter_id!r} are not loaded: they were dropped, or their session "
                "ended. Make them again with save_weights_and_get_sampling_client()."
            )
        base_model, adapter = self._adapters[work.adapter_id]
        if base_model != work.base_model:
            raise BadRequest(
                f"sampler weights {work.adapter_id!r} belong to base model {base_model!r}, "
                f"not to {work.base_model!r}"
            )
        return adapter
