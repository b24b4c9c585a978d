"""LocalEngine: trainer and sampler on this machine, over one pool of base models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tinkerlite.types import AdamParams
from tinkerlite_server.engine.free_memory import free_bytes
from tinkerlite_server.engine.full_files import holds_whole_model
from tinkerlite_server.engine.full_model import (
    FullModel,
    parameter_count,
    sampling_bytes,
    training_bytes,
)
from tinkerlite_server.engine.model_pool import DTYPES, ModelPool
from tinkerlite_server.engine.model_tokenizer import ModelTokenizer
from tinkerlite_server.engine.protocols import (
    AdapterConfig,
    EngineLimits,
    LossGraph,
    LossProgram,
    ModelInfo,
    SampledToken,
    SampleResult,
    SampleWork,
    TrainBatch,
    TrainOutput,
)
from tinkerlite_server.engine.sampler import LocalSampler
from tinkerlite_server.engine.trainer import LocalTrainer
from tinkerlite_server.engine.vllm_process import VllmSettings
from tinkerlite_server.engine.vllm_sampler import VllmSampler
from tinkerlite_server.engine.vllm_start import start_vllm
from tinkerlite_server.errors import NoRoom, ServerError


class LocalEngine:
    """Implements `Engine`. Sampler and trainer run the same modules on the same weights.

    Args:
        vllm: how to run vLLM, which then makes the completions.

    Raises:
        EngineFailure: vLLM does not start, or does not agree with PyTorch.
    """

    def __init__(
        self, catalog: Mapping[str, ModelInfo], limits: EngineLimits, vllm: VllmSettings | None = None
    ) -> None:
        self._limits = limits
        self._pool = ModelPool(catalog, limits)
        self._trainer = LocalTrainer(self._pool, limits)
        self._sampler: LocalSampler | VllmSampler = LocalSampler(self._pool, limits)
        if vllm is not None:
            self._sampler = start_vllm(self._pool, self._sampler, limits, vllm)

    @property
    def catalog(self) -> Mapping[str, ModelInfo]:
        """The base models on offer by name."""
        return self._pool.catalog

    def tokenizer(self, base_model: str) -> ModelTokenizer:
        """See `Engine.tokenizer`."""
        return self._pool.tokenizer(base_model)

    def close(self) -> None:
        """End what runs beside this process: nothing, or vLLM."""
        if isinstance(self._sampler, VllmSampler):
            self._sampler.close()

    # ---- Trainer ----

    def create_run(self, model_id: str, base_model: str, adapter: AdapterConfig | None) -> None:
        """See `Trainer.create_run`."""
        if adapter is None:
            self._check_room_to_train(base_model, self._pool.info(base_model).folder)
        self._trainer.create_run(model_id, base_model, adapter)
        self._announce(base_model, adapter)

    def _announce(self, base_model: str, adapter: AdapterConfig | None) -> None:
        if isinstance(self._sampler, VllmSampler):
            self._sampler.announce(base_model, adapter)

    def drop_run(self, model_id: str) -> None:
        """See `Trainer.drop_run`."""
        self._trainer.drop_run(model_id)

    def forward_backward(self, batches: Sequence[TrainBatch]) -> list[TrainOutput | ServerError]:
        """See `Trainer.forward_backward`."""
        return self._trainer.forward_backward(batches)

    def compile_loss(self, graph: LossGraph) -> LossProgram:
        """See `Trainer.compile_loss`."""
        return self._trainer.compile_loss(graph)

    def optim_step(self, model_id: str, params: AdamParams) -> dict[str, float]:
        """See `Trainer.optim_step`."""
        return self._trainer.optim_step(model_id, params)

    def discard_gradients(self, model_id: str) -> None:
        """See `Trainer.discard_gradients`."""
        self._trainer.discard_gradients(model_id)

    def save_run(self, model_id: str, folder: Path, *, optimizer: bool) -> None:
        """See `Trainer.save_run`."""
        self._trainer.save_run(model_id, folder, optimizer=optimizer)

    def load_run(
        self, model_id: str, base_model: str, folder: Path, *, optimizer: bool
    ) -> AdapterConfig | None:
        """See `Trainer.load_run`."""
        if holds_whole_model(folder):
            self._check_room_to_train(base_model, folder)
        adapter = self._trainer.load_run(model_id, base_model, folder, optimizer=optimizer)
        self._announce(base_model, adapter)
        return adapter

    def snapshot(self, model_id: str, adapter_id: str) -> None:
        """Handing weights to the sampler is a copy of them, in memory."""
        run = self._trainer.run(model_id)
        if isinstance(run.weights, FullModel):
            self._check_room(
                f"a copy of {model_id!r} to sample from",
                sampling_bytes(run.weights.parameter_count, run.weights.dtype),
            )
            copy = run.weights.frozen_copy()
        else:
            copy = run.weights.frozen_copy(self._dtype(run.base_model))
        self._sampler.add_adapter(adapter_id, run.base_model, copy)

    # ---- memory of full fine-tuning ----

    def _check_room_to_train(self, base_model: str, folder: Path) -> None:
        parameters = parameter_count(folder)
        self._check_room(
            f"training all {parameters:,} weights of {base_model!r}, with gradients and Adam's moments,",
            training_bytes(parameters, self._dtype(base_model)),
        )

    def _check_room(self, what: str, needed: int) -> None:
        """Refuse what would not fit.

        Raises:
            NoRoom: saying how many bytes it needs, and how many there are.
        """
        allowed = self._limits.max_full_bytes
        held = self._trainer.full_bytes + self._sampler.full_bytes
        if held + needed > allowed:
            raise NoRoom(
                f"{what} takes {needed:,} bytes, and {max(allowed - held, 0):,} of the {allowed:,} that this "
                "server allows full fine-tuning (--full-gib) are free. Unload runs, train a LoRA adapter, or "
                "allow more",
                freeable=self._sampler.full_ids,
            )
        free = free_bytes(self._pool.device)
        if free is not None and needed > free:
            raise NoRoom(
                f"{what} takes {needed:,} bytes, and {self._pool.device} has {free:,} free, less than the "
                f"{allowed - held:,} that --full-gib would allow. Unload runs, or train a LoRA adapter",
                freeable=self._sampler.full_ids,
            )

    def _dtype(self, base_model: str) -> torch.dtype:
        return DTYPES[self._pool.info(base_model).dtype]

    # ---- Sampler ----

    def load_adapter(self, adapter_id: str, base_model: str, folder: Path) -> None:
        """See `Sampler.load_adapter`."""
        if holds_whole_model(folder):
            needed = sampling_bytes(parameter_count(folder), self._dtype(base_model))
            self._check_room(f"the weights in {folder.name!r}", needed)
        self._sampler.load_adapter(adapter_id, base_model, folder)

    def drop_adapter(self, adapter_id: str) -> None:
        """See `Sampler.drop_adapter`."""
        self._sampler.drop_adapter(adapter_id)

    def has_adapter(self, adapter_id: str) -> bool:
        """See `Sampler.has_adapter`."""
        return self._sampler.has_adapter(adapter_id)

    def submit(self, work: SampleWork) -> None:
        """See `Sampler.submit`."""
        self._sampler.submit(work)

    def cancel(self, key: str) -> None:
        """See `Sampler.cancel`."""
        self._sampler.cancel(key)

    def step(self) -> list[SampleResult | SampledToken]:
        """See `Sampler.step`."""
        return self._sampler.step()

    @property
    def has_work(self) -> bool:
        """See `Sampler.has_work`."""
        return self._sampler.has_work
