"""A scheduler without its thread: a test takes each turn itself, and looks between them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.server.toy_engine import ToyEngine
from tinkerlite.types import AdamParams
from tinkerlite_server.adapters import Adapters
from tinkerlite_server.checkpoint_folders import CheckpointFolders
from tinkerlite_server.engine.protocols import AdapterConfig, Example, SampleWork, TrainBatch
from tinkerlite_server.executor import Executor
from tinkerlite_server.futures import Done, Failed, FutureTable
from tinkerlite_server.operations import (
    CreateRun,
    ForwardBackward,
    OptimStep,
    Refusal,
    Sample,
    Snapshot,
)
from tinkerlite_server.sample_queue import SampleQueue
from tinkerlite_server.scheduler import Scheduler
from tinkerlite_server.settings import Limits
from tinkerlite_server.store import Store

OWNER = "me"
ADAPTER = AdapterConfig(rank=4, alpha=32.0, seed=1)


class Clock:
    """Stands still, but for what a test adds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Rig:
    """A toy engine, its queues, and shorthands for what is put into them."""

    def __init__(self, folder: Path, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.engine = ToyEngine()
        self.clock = Clock()
        self.store = Store(folder)
        self.futures = FutureTable(
            result_seconds=1e9, unfetched_seconds=1e9, max_result_bytes=10**9, clock=self.clock
        )
        samples = SampleQueue(window=self.limits.sampler_window, limit=self.limits.max_queued_samples)
        adapters = Adapters(
            self.engine,
            samples.uses,
            self.store.end_samplers_of_snapshot,
            snapshots_per_run=self.limits.snapshots_per_run,
            loaded=self.limits.loaded_adapters,
        )
        executor = Executor(self.engine, self.store, CheckpointFolders(folder / "checkpoints"), adapters)
        self.scheduler = Scheduler(executor, self.futures, samples, self.limits, clock=self.clock)

    # ---- what a client sends ----

    def create(self, model_id: str, base_model: str = "toy") -> str:
        self.store.add_run(
            model_id,
            session_id="sess",
            owner=OWNER,
            base_model=base_model,
            adapter=ADAPTER,
            user_metadata={},
        )
        request_id = self.futures.open(OWNER).request_id
        operation = CreateRun(
            request_id=request_id, model_id=model_id, seq_id=0, base_model=base_model, adapter=ADAPTER
        )
        self.scheduler.accept(operation, OWNER)
        return request_id

    def runs(self, *model_ids: str) -> None:
        """Runs that exist."""
        for model_id in model_ids:
            self.create(model_id)
        self.turn_until_idle()
        self.engine.calls.clear()

    def forward_backward(
        self,
        model_id: str,
        seq_id: int,
        *,
        datums: int = 1,
        forward_only: bool = False,
        loss_fn: str = "cross_entropy",
    ) -> str:
        request_id = self.futures.open(OWNER).request_id
        inputs = {"weights": np.ones(3, np.float32)}
        if loss_fn != "cross_entropy":
            inputs = {"logprobs": np.zeros(3, np.float32), "advantages": np.ones(3, np.float32)}
        batch = TrainBatch(
            model_id=model_id,
            examples=[Example(np.array([1, 2, 3]), np.array([2, 3, 4]), inputs)] * datums,
            loss_fn=loss_fn,
            loss_config={},
            forward_only=forward_only,
        )
        operation = ForwardBackward(request_id=request_id, model_id=model_id, seq_id=seq_id, batch=batch)
        self.scheduler.accept(operation, OWNER)
        return request_id

    def optim_step(self, model_id: str, seq_id: int) -> str:
        request_id = self.futures.open(OWNER).request_id
        params = AdamParams(learning_rate=0.5)
        operation = OptimStep(request_id=request_id, model_id=model_id, seq_id=seq_id, params=params)
        self.scheduler.accept(operation, OWNER)
        return request_id

    def snapshot(self, model_id: str, seq_id: int, sampling_session_id: str) -> str:
        request_id = self.futures.open(OWNER).request_id
        operation = Snapshot(
            request_id=request_id,
            model_id=model_id,
            seq_id=seq_id,
            sampling_session_id=sampling_session_id,
        )
        self.scheduler.accept(operation, OWNER)
        return request_id

    def refuse(self, model_id: str, seq_id: int, *, loses_gradients: bool = False) -> None:
        refusal = Refusal(
            model_id=model_id, seq_id=seq_id, reason="data is empty", loses_gradients=loses_gradients
        )
        self.scheduler.refuse(refusal, OWNER)

    def sample(self, *, max_tokens: int = 4, adapter_id: str | None = None) -> str:
        request_id = self.futures.open(OWNER).request_id
        work = SampleWork(
            key=request_id,
            base_model="toy",
            adapter_id=adapter_id,
            prompt=np.array([1]),
            num_samples=1,
            max_tokens=max_tokens,
            seeds=(0,),
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            stop_ids=frozenset(),
        )
        self.scheduler.accept_sample(Sample(owner=OWNER, work=work, folder=None))
        return request_id

    # ---- what happens ----

    def turn_until_idle(self) -> None:
        for _ in range(1000):
            if not self.scheduler.turn():
                return
        raise AssertionError("the scheduler never comes to rest")

    def outcome(self, request_id: str) -> Done | Failed | None:
        return asyncio.run(self.futures.wait(request_id, OWNER, 0.0))

    def answer(self, request_id: str) -> dict[str, Any]:
        outcome = self.outcome(request_id)
        assert isinstance(outcome, Done), outcome
        return json.loads(outcome.body)

    def failure(self, request_id: str) -> Failed:
        outcome = self.outcome(request_id)
        assert isinstance(outcome, Failed), outcome
        return outcome

    def verbs(self, *of: str) -> list[str]:
        """The engine's calls in order, or those of some verbs."""
        return [" ".join(call) for call in self.engine.calls if not of or call[0] in of]

    def trained(self) -> Sequence[str]:
        return self.verbs("forward_backward", "optim_step", "discard_gradients")
