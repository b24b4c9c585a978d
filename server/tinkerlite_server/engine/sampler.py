"""LocalSampler: makes tokens in this process.

Resolves what a request names (base model, adapter, tokenizer) and hands it to the batcher of
its base model (batcher.py). A request holds what it resolved: dropping an adapter hides its
name at once and frees it when the last request that uses it ends.
"""

from __future__ import annotations

from pathlib import Path

from tinkerlite_server.engine.adapter_loading import load_adapter
from tinkerlite_server.engine.batcher import Batcher, as_server_error
from tinkerlite_server.engine.lora import Adapter
from tinkerlite_server.engine.model_pool import ModelPool
from tinkerlite_server.engine.protocols import EngineLimits, SampledToken, SampleResult, SampleWork
from tinkerlite_server.engine.samples import Job
from tinkerlite_server.engine.stops import StopRule, StopStrings
from tinkerlite_server.errors import BadRequest, UnknownName


class LocalSampler:
    """Implements `Sampler` on this machine."""

    def __init__(self, pool: ModelPool, limits: EngineLimits) -> None:
        self._pool = pool
        self._limits = limits
        self._adapters: dict[str, tuple[str, Adapter]] = {}
        """By id: the base model's name and the factors."""
        self._batchers: dict[str, Batcher] = {}
        """By base model; only those with work, so that an idle model can be evicted."""
        self._refused: list[SampleResult] = []

    # ---- adapters ----

    def add_adapter(self, adapter_id: str, base_model: str, adapter: Adapter) -> None:
        """Make an adapter in memory available; requests already submitted keep the one they had."""
        self._adapters[adapter_id] = (base_model, adapter)

    def load_adapter(self, adapter_id: str, base_model: str, folder: Path) -> None:
        """Make a saved adapter (PEFT layout) available under this id.

        Raises:
            BadRequest: it does not fit the base model, or is no adapter.
        """
        adapter = load_adapter(self._pool.get(base_model), folder, trainable=False)
        self.add_adapter(adapter_id, base_model, adapter)

    def drop_adapter(self, adapter_id: str) -> None:
        """Free an adapter once no submitted work uses it; unknown ids are ignored."""
        self._adapters.pop(adapter_id, None)

    def has_adapter(self, adapter_id: str) -> bool:
        """Whether `add_adapter` or `load_adapter` made it available."""
        return adapter_id in self._adapters

    # ---- requests ----

    def submit(self, work: SampleWork) -> None:
        """Queue work, and load its base model if need be. What it gets wrong comes back as its result."""
        try:
            job = self._job(work)
            if work.base_model not in self._batchers:
                self._batchers[work.base_model] = Batcher(self._pool.get(work.base_model), self._limits)
            self._batchers[work.base_model].submit(job)
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
        self._batchers = {name: batcher for name, batcher in self._batchers.items() if batcher.has_work}

    def _job(self, work: SampleWork) -> Job:
        strings = None
        if work.stop_strings:
            strings = StopStrings(work.stop_strings, self._pool.tokenizer(work.base_model))
        stop = StopRule(max_tokens=work.max_tokens, stop_ids=work.stop_ids, strings=strings)
        return Job(work, self._adapter(work), stop)

    def _adapter(self, work: SampleWork) -> Adapter | None:
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
