"""LocalTrainer: gradients and optimizer steps of many runs.

A request's examples are packed into passes (streams.py), several runs' together; each pass
goes forward, its losses are summed, and one backward adds to every run's gradients. A run that
trains all weights has a model of its own (full_model.py), and passes of its own. A custom
loss is differentiated at the logprobs first, and joins that sum as its linear term. A request
either adds all of its gradients or none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tinkerlite.types import AdamParams
from tinkerlite_server.engine.adapter_files import read_optimizer, write_adapter, write_optimizer
from tinkerlite_server.engine.adapter_loading import load_adapter
from tinkerlite_server.engine.base_model import BaseModel
from tinkerlite_server.engine.custom_loss import Program, compile_loss
from tinkerlite_server.engine.full_files import holds_whole_model, write_model
from tinkerlite_server.engine.full_model import FullModel, training_bytes
from tinkerlite_server.engine.logprobs import target_logprobs
from tinkerlite_server.engine.lora import Adapter
from tinkerlite_server.engine.losses import LOSSES
from tinkerlite_server.engine.model_pool import DTYPES, ModelPool
from tinkerlite_server.engine.optimizer import AdamW
from tinkerlite_server.engine.passes import cut_passes
from tinkerlite_server.engine.protocols import (
    AdapterConfig,
    EngineLimits,
    Example,
    Floats,
    LossGraph,
    LossProgram,
    TrainBatch,
    TrainOutput,
)
from tinkerlite_server.engine.streams import PackedStream
from tinkerlite_server.errors import BadRequest, EngineFailure, ServerError, UnknownName


@dataclass(eq=False)
class Run:
    """A training run in memory: what it trains, accumulated gradients (in `.grad`), optimizer state."""

    base_model: str
    weights: Adapter | FullModel
    optimizer: AdamW

    @property
    def adapter(self) -> Adapter | None:
        """What is added to the base model; None if the weights are a whole model's."""
        return self.weights if isinstance(self.weights, Adapter) else None


@dataclass(eq=False)
class _Job:
    """One example on its way: which batch and place it came from, and what came of it."""

    batch: int
    place: int
    example: Example
    run: Run
    logprobs: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    elementwise_loss: Floats | None = None
    loss: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=lambda: {})


class LocalTrainer:
    """Implements `Trainer` on this machine."""

    def __init__(self, pool: ModelPool, limits: EngineLimits) -> None:
        self._pool = pool
        self._limits = limits
        self._runs: dict[str, Run] = {}

    # ---- runs ----

    def create_run(self, model_id: str, base_model: str, adapter: AdapterConfig | None) -> None:
        """A fresh adapter, or a copy of all weights, and fresh optimizer state."""
        base = self._pool.get(base_model)
        if adapter is None:
            weights = self._full_model(base_model, base.info.folder)
        else:
            weights = Adapter.fresh(adapter, base.bank.targets)
        self._runs[model_id] = Run(base_model, weights, AdamW(weights))

    def _full_model(self, base_model: str, folder: Path) -> FullModel:
        info = self._pool.info(base_model)
        return FullModel(info, self._pool.device, DTYPES[info.dtype], folder)

    def drop_run(self, model_id: str) -> None:
        """Free a run; unknown ids are ignored."""
        self._runs.pop(model_id, None)

    def run(self, model_id: str) -> Run:
        """The run of this id.

        Raises:
            UnknownName: it was never created here, or its session ended.
        """
        try:
            return self._runs[model_id]
        except KeyError:
            raise UnknownName(
                f"training run {model_id!r} is not in memory: it was unloaded or its session ended. "
                "Save checkpoints with save_state(), and go on with create_training_client_from_state()."
            ) from None

    # ---- gradients ----

    def forward_backward(self, batches: Sequence[TrainBatch]) -> list[TrainOutput | ServerError]:
        """Run the batches in merged passes; if that fails, one by one, so that each fails for itself."""
        if len(batches) > 1 and any(self._has_own_model(batch.model_id) for batch in batches):
            return [self.forward_backward([batch])[0] for batch in batches]
        try:
            return list(self._run_merged(batches))
        except (ServerError, RuntimeError, MemoryError) as error:
            # Its traceback holds what the pass had computed: memory that may be what is missing.
            failed = error.with_traceback(None)
        if len(batches) > 1:
            return [self.forward_backward([batch])[0] for batch in batches]
        if isinstance(failed, ServerError):
            return [failed]
        return [EngineFailure(f"forward_backward of {batches[0].model_id!r} failed: {failed}")]

    def _has_own_model(self, model_id: str) -> bool:
        run = self._runs.get(model_id)
        return run is not None and isinstance(run.weights, FullModel)

    def _run_merged(self, batches: Sequence[TrainBatch]) -> list[TrainOutput]:
        runs = [self.run(batch.model_id) for batch in batches]
        jobs = [
            _Job(number, place, example, runs[number])
            for number, batch in enumerate(batches)
            for place, example in enumerate(batch.examples)
        ]
        learning = [run for run, batch in zip(runs, batches, strict=True) if not batch.forward_only]
        weights = runs[0].weights
        model = weights if isinstance(weights, FullModel) else self._pool.get(runs[0].base_model)
        with _Accumulation(learning):
            sequences = [job.example.tokens for job in jobs]
            adapters = [job.run.adapter for job in jobs]
            for members in cut_passes(sequences, adapters, self._limits.max_pass_tokens):
                self._run_pass(model, batches, [jobs[i] for i in members])
        return [self._output(jobs, number) for number in range(len(batches))]

    def _run_pass(
        self, model: BaseModel | FullModel, batches: Sequence[TrainBatch], jobs: Sequence[_Job]
    ) -> None:
        learns = any(not batches[job.batch].forward_only for job in jobs)
        with torch.set_grad_enabled(learns):
            logprobs = self._target_logprobs(model, jobs)
            total: Tensor | None = None
            for job, lp in zip(jobs, logprobs, strict=True):
                batch = batches[job.batch]
                job.logprobs = lp.detach().numpy()
                loss = _loss(job, batch, lp) if batch.program is None else _custom_loss(job, batch, lp)
                if not batch.forward_only:
                    total = loss if total is None else total + loss
        if total is not None:
            total.backward()

    def _target_logprobs(self, model: BaseModel | FullModel, jobs: Sequence[_Job]) -> list[Tensor]:
        """log p of every job's targets, each shaped like them.

        Rows and (row, target) pairs that several examples share are computed once.
        """
        stream = PackedStream(
            [job.example.tokens for job in jobs], [job.run.adapter for job in jobs], self._pool.device
        )
        rows, targets = [], []
        for job, stream_rows in zip(jobs, stream.rows, strict=True):
            shape = job.example.target_tokens.shape
            spread = stream_rows if len(shape) == 1 else np.broadcast_to(stream_rows[:, None], shape)
            rows.append(spread.reshape(-1))
            targets.append(job.example.target_tokens.reshape(-1))
        vocab = model.info.vocab_size
        pairs, back = np.unique(np.concatenate(rows) * vocab + np.concatenate(targets), return_inverse=True)
        lp_M = target_logprobs(
            model,
            model.hidden(stream),
            stream.adapters,
            torch.from_numpy(pairs // vocab).to(self._pool.device),
            torch.from_numpy(pairs % vocab).to(self._pool.device),
            self._limits.head_chunk,
        )
        # Losses are a few operations on a few numbers an example: on a processor, behind one copy.
        flat = lp_M.cpu()[torch.from_numpy(back)]
        pieces = flat.split([len(part) for part in rows])
        return [piece.view(job.example.target_tokens.shape) for piece, job in zip(pieces, jobs, strict=True)]

    def _output(self, jobs: Sequence[_Job], batch: int) -> TrainOutput:
        mine = sorted((job for job in jobs if job.batch == batch), key=lambda job: job.place)
        total = sum(job.loss for job in mine)
        tokens = sum(len(job.example.tokens) for job in mine)
        losses = [job.elementwise_loss for job in mine if job.elementwise_loss is not None]
        return TrainOutput(
            logprobs=[job.logprobs for job in mine],
            elementwise_loss=losses or None,
            metrics={"loss:sum": total, "tokens:sum": float(tokens), **_custom_metrics(mine)},
        )

    def compile_loss(self, graph: LossGraph) -> LossProgram:
        """See `Trainer.compile_loss`."""
        return compile_loss(graph, self._limits.max_loss_values)

    # ---- steps and files ----

    def optim_step(self, model_id: str, params: AdamParams) -> dict[str, float]:
        """AdamW on the accumulated gradients, then zero them."""
        return self.run(model_id).optimizer.step(params)

    def discard_gradients(self, model_id: str) -> None:
        """Zero the accumulated gradients without a step."""
        for _, tensor in self.run(model_id).weights.parameters():
            tensor.grad = None

    def save_run(self, model_id: str, folder: Path, *, optimizer: bool) -> None:
        """Write the weights and, if asked, the optimizer's moments and step.

        An adapter in PEFT's layout; a whole model in transformers', in fp32 to train on from, else in the
        dtype that samplers use.
        """
        run = self.run(model_id)
        if isinstance(run.weights, FullModel):
            model = run.weights.transformers_model(torch.float32 if optimizer else run.weights.dtype)
            write_model(folder, model, run.weights.info.folder)
        else:
            tensors = {path: (pair.a.detach(), pair.b.detach()) for path, pair in run.weights.pairs.items()}
            write_adapter(folder, tensors, run.weights.config, run.base_model)
        if optimizer:
            write_optimizer(folder, *run.optimizer.state())

    def load_run(
        self, model_id: str, base_model: str, folder: Path, *, optimizer: bool
    ) -> AdapterConfig | None:
        """Create the run from a folder that `save_run` wrote."""
        if holds_whole_model(folder):
            weights = self._full_model(base_model, folder)
        else:
            weights = load_adapter(self._pool.get(base_model), folder, trainable=True)
        run = Run(base_model, weights, AdamW(weights))
        if optimizer:
            run.optimizer.load_state(*read_optimizer(folder))
        self._runs[model_id] = run
        return None if run.adapter is None else run.adapter.config

    @property
    def full_bytes(self) -> int:
        """What runs that train all weights take."""
        models = [run.weights for run in self._runs.values() if isinstance(run.weights, FullModel)]
        return sum(training_bytes(model.parameter_count, model.dtype) for model in models)


class _Accumulation:
    """All or nothing: gradients made inside are added to those before, or dropped if it fails."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._parameters = [tensor for run in runs for _, tensor in run.weights.parameters()]
        self._before: list[Tensor | None] = []

    def __enter__(self) -> None:
        self._before = [tensor.grad for tensor in self._parameters]
        for tensor in self._parameters:
            tensor.grad = None

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for tensor, before in zip(self._parameters, self._before, strict=True):
            if kind is not None:
                tensor.grad = before
            elif before is not None:
                tensor.grad = before if tensor.grad is None else before.add_(tensor.grad)


def _loss(job: _Job, batch: TrainBatch, lp: Tensor) -> Tensor:
    """One of this server's own losses, summed over positions."""
    loss = LOSSES[batch.loss_fn](lp, _tensors(job.example), batch.loss_config)
    job.elementwise_loss = loss.detach().numpy()
    _check_finite(job, batch, job.elementwise_loss)
    job.loss = float(job.elementwise_loss.sum(dtype=np.float64))
    return loss.sum()


def _custom_loss(job: _Job, batch: TrainBatch, lp: Tensor) -> Tensor:
    """The linear term of a caller's loss L at these logprobs: sum dL/dlp * lp has L's gradient.

    Raises:
        BadRequest: naming the datum and, within the loss, the operation.
    """
    assert isinstance(batch.program, Program)
    _check_finite(job, batch, job.logprobs)
    try:
        # On a processor an index beyond its tensor is an error of this request, and no other's.
        evaluated = batch.program.evaluate(
            lp.detach(), _tensors(job.example), differentiate=not batch.forward_only
        )
    except BadRequest as error:
        raise BadRequest(f"datum {job.place}: {error}. No gradient of this request was kept.") from error
    job.loss, job.metrics = evaluated.loss, evaluated.metrics
    return lp.sum() if evaluated.gradient is None else (evaluated.gradient * lp).sum()


def _tensors(example: Example) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in example.inputs.items()}


def _custom_metrics(jobs: Sequence[_Job]) -> dict[str, float]:
    """Metrics that a custom loss computes for every datum, by the reduction that each name ends in."""
    combined: dict[str, float] = {}
    for name in jobs[0].metrics:
        total = math.fsum(job.metrics[name] for job in jobs)
        combined[name] = total / len(jobs) if name.endswith(":mean") else total
    return combined


def _check_finite(job: _Job, batch: TrainBatch, losses: Floats) -> None:
    """Refuse infinities and NaN before they reach the gradients.

    Raises:
        BadRequest: naming datum, position and the inputs there.
    """
    for name, values in (("logprob", job.logprobs), ("loss", losses)):
        if np.isfinite(values).all():
            continue
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        given = ", ".join(
            f"{key} {value[place]:.4g}"
            for key, value in job.example.inputs.items()
            if value.shape == job.logprobs.shape
        )
        raise BadRequest(
            f"{batch.loss_fn}: the {name} of datum {job.place} at position {place[0]} is {values[place]} "
            f"({given}, trainer's logprob {job.logprobs[place]:.4g}). No gradient of this request was kept; "
            "check its logprobs and advantages, or lower the learning rate."
        )
