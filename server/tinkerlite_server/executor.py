"""Executor: what each operation does to the engine and the store, and what it answers.

One operation at a time, on the engine's thread. Knows no queues: who runs when, and what a
failure means for the operations behind it, is the scheduler's business.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinkerlite.wire import encode_sample_response
from tinkerlite_server.adapters import Adapters
from tinkerlite_server.age_files import encrypt_files
from tinkerlite_server.checkpoint_folders import CheckpointFolders
from tinkerlite_server.engine.protocols import Engine, SampledToken, SampleResult, TrainBatch, TrainOutput
from tinkerlite_server.errors import BadRequest, ServerError, UnknownName
from tinkerlite_server.futures import Done
from tinkerlite_server.model_card import model_card
from tinkerlite_server.operations import (
    CreateRun,
    LoadRun,
    Operation,
    OptimStep,
    Sample,
    Save,
    SavedKind,
    Snapshot,
    UnloadRun,
)
from tinkerlite_server.store import Store
from tinkerlite_server.tables import RunRow, SamplerRow


class Executor:
    """Carries out operations.

    Every method but `__init__` is called from the engine's thread.
    """

    def __init__(self, engine: Engine, store: Store, folders: CheckpointFolders, adapters: Adapters) -> None:
        self._engine = engine
        self._store = store
        self._folders = folders
        self._adapters = adapters

    # ---- training ----

    def run(self, operation: Operation) -> Done:
        """Carry out any operation but a forward_backward.

        Raises:
            ServerError: it failed; the run is as it was before.
        """
        match operation:
            case CreateRun():
                return self._create(operation)
            case LoadRun():
                return self._load(operation)
            case OptimStep():
                metrics = self._engine.optim_step(operation.model_id, operation.params)
                return _answer(metrics=metrics, type="optim_step")
            case Save():
                return self._save(operation)
            case Snapshot():
                return self._snapshot(operation)
            case UnloadRun():
                self._engine.drop_run(operation.model_id)
                self._store.end_run(operation.model_id, "it was unloaded")
                return _answer(model_id=operation.model_id, type="unload_model")
            case _:
                raise TypeError(f"no way to run a {type(operation).__name__}")

    def forward_backward(self, batches: Sequence[TrainBatch]) -> list[TrainOutput | ServerError]:
        """Run batches of different runs together."""
        return self._engine.forward_backward(batches)

    def discard_gradients(self, model_id: str) -> None:
        """Start the run's accumulation afresh."""
        self._engine.discard_gradients(model_id)

    def drop_run(self, model_id: str) -> None:
        """Free a run."""
        self._engine.drop_run(model_id)

    def forget_run(self, model_id: str) -> None:
        """The run never came to be."""
        self._engine.drop_run(model_id)
        self._store.delete_run(model_id)

    def _create(self, operation: CreateRun) -> Done:
        self._adapters.make_room(
            lambda: self._engine.create_run(operation.model_id, operation.base_model, operation.adapter)
        )
        return _answer(model_id=operation.model_id, type="create_model")

    def _load(self, operation: LoadRun) -> Done:
        checkpoint = self._store.checkpoint_by_id(operation.checkpoint_id)
        if checkpoint is None:
            raise UnknownName(f"checkpoint {operation.path!r} was deleted or replaced before it was loaded")
        with self._folders.reading(checkpoint.folder) as folder:
            if folder is None:
                raise UnknownName(f"checkpoint {operation.path!r} was deleted while it was to be loaded")
            adapter = self._adapters.make_room(
                lambda: self._engine.load_run(
                    operation.model_id, operation.base_model, folder, optimizer=operation.optimizer
                )
            )
        self._store.set_run_adapter(operation.model_id, adapter)
        return _answer(path=operation.path, model_id=operation.model_id, type="load_weights")

    # ---- saving ----

    def _save(self, operation: Save) -> Done:
        run = self._run_row(operation.model_id)
        name, kind = operation.name, operation.kind
        path = f"tinker://{run.id}/{kind}/{name}"
        answer: dict[str, Any] = {"path": path, "type": _SAVES[kind]}
        taken = self._store.find_checkpoint(run.id, kind, name, run.owner)
        if taken is not None and not operation.overwrite:
            raise BadRequest(f"{taken.path} exists already; save under another name, or with overwrite=True")

        def fill(folder: Path) -> None:
            self._engine.save_run(operation.model_id, folder, optimizer=kind == "weights")
            if kind == "external_weights":
                card = model_card(path, run.base_model, run.adapter_config)
                (folder / "README.md").write_text(card, encoding="utf-8")
            if operation.recipients:
                encrypt_files(folder, operation.recipients)

        def register(folder: str, size_bytes: int) -> None:
            if kind == "external_weights":
                answer["size_bytes"] = size_bytes
            self._store.put_checkpoint(
                run,
                kind=kind,
                name=name,
                folder=folder,
                size_bytes=size_bytes,
                ttl_seconds=operation.ttl_seconds,
                user_metadata=operation.user_metadata or {},
            )

        self._folders.write(f"{run.id.replace(':', '.')}.{kind}.{name}", fill, register)
        if kind == "sampler_weights":
            answer["sampling_session_id"] = None
        return _answer(**answer)

    def _snapshot(self, operation: Snapshot) -> Done:
        run = self._run_row(operation.model_id)
        sampler_id = operation.sampling_session_id
        if self._store.find_sampler(sampler_id) is not None:
            raise BadRequest(
                f"sampling session {sampler_id!r} exists already; count sampling_session_seq_id up"
            )
        self._adapters.snapshot(operation.model_id, sampler_id)
        try:
            self._store.add_sampler(
                SamplerRow(
                    id=sampler_id,
                    session_id=run.session_id,
                    owner=run.owner,
                    base_model=run.base_model,
                    model_path=None,
                    adapter_id=sampler_id,
                    folder=None,
                    ended=None,
                )
            )
        except Exception:
            self._adapters.drop_snapshot(sampler_id)
            raise
        return _answer(path=None, sampling_session_id=sampler_id, type="save_weights_for_sampler")

    def _run_row(self, model_id: str) -> RunRow:
        run = self._store.find_run(model_id)
        if run is None or run.ended:
            raise UnknownName(f"training run {model_id!r} has ended")
        return run

    # ---- sampling ----

    @property
    def is_sampling(self) -> bool:
        """Whether a sampling step would do anything."""
        return self._engine.has_work

    def start_sample(self, sample: Sample) -> None:
        """Hand a request to the engine.

        Raises:
            ServerError: its weights cannot be had.
        """
        work = sample.work
        if work.adapter_id is not None:
            self._adapters.prepare(work.adapter_id, work.base_model, self._folder_of(sample))
        self._engine.submit(work)

    def sampling_step(self) -> list[SampleResult | SampledToken]:
        """One step of everything that samples; new tokens to report, and what finished."""
        return self._engine.step()

    def cancel_sample(self, request_id: str) -> None:
        """Make the engine forget a request."""
        self._engine.cancel(request_id)

    def drop_snapshot(self, adapter_id: str) -> None:
        """Free the weights of a sampling session that ended."""
        self._adapters.drop_snapshot(adapter_id)

    def _folder_of(self, sample: Sample) -> Path | None:
        return None if sample.folder is None else self._folders.path(sample.folder)


_SAVES: dict[SavedKind, str] = {
    "weights": "save_weights",
    "sampler_weights": "save_weights_for_sampler",
    "external_weights": "save_weights_external",
}
"""What each kind is saved by."""


def sample_answer(result: SampleResult) -> Done:
    """The encoded answer to a request.

    Raises:
        ServerError: it failed.
    """
    if isinstance(result.outcome, ServerError):
        raise result.outcome
    return Done(encode_sample_response(result.outcome), "sample")


def _answer(**fields: Any) -> Done:
    return Done(json.dumps(fields).encode())
