"""Service: one server's parts, put together, and the life of its sessions. Knows no HTTP.

A session is one client process. While it gives signs of life, its training runs and sampling
sessions stay in memory; when it ends, they are freed, and its saved checkpoints remain.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from tinkerlite_server.adapters import Adapters
from tinkerlite_server.auth import Keyring
from tinkerlite_server.boundary import attempt
from tinkerlite_server.checkpoint_folders import CheckpointFolders
from tinkerlite_server.custom_losses import CustomLosses
from tinkerlite_server.downloads import Links
from tinkerlite_server.engine.protocols import AdapterConfig, Engine, LossGraph, ModelInfo
from tinkerlite_server.errors import BadRequest, Gone, ServerError, UnknownName
from tinkerlite_server.executor import Executor
from tinkerlite_server.futures import Done, FutureTable, Ticket
from tinkerlite_server.operations import CreateRun, LoadRun, Operation, Refusal, Sample
from tinkerlite_server.sample_queue import SampleQueue
from tinkerlite_server.scheduler import Scheduler
from tinkerlite_server.settings import Settings
from tinkerlite_server.store import Store
from tinkerlite_server.tables import CheckpointRow

logger = logging.getLogger(__name__)

_STOP_SECONDS = 10.0
"""How long stopping waits for the engine call under way."""


class Service:
    """Everything a route may need.

    Raises:
        FolderInUse: another server is running on the data folder.
    """

    def __init__(self, settings: Settings, engine: Engine) -> None:
        limits = settings.limits
        self.settings = settings
        self.catalog = engine.catalog
        self.tokenizer = engine.tokenizer
        self.custom_losses = CustomLosses(limits.max_custom_losses) if settings.custom_losses else None
        self.keyring = Keyring(settings.api_keys)
        self.store = Store(settings.data_dir)
        self.links = Links(settings.data_dir, limits.download_seconds)
        self.futures = FutureTable(
            result_seconds=limits.result_seconds,
            unfetched_seconds=limits.unfetched_seconds,
            max_result_bytes=limits.max_result_bytes,
        )
        samples = SampleQueue(window=limits.sampler_window, limit=limits.max_queued_samples)
        self._compile_loss = engine.compile_loss
        self._folders = CheckpointFolders(settings.data_dir / "checkpoints")
        adapters = Adapters(
            engine,
            samples.uses,
            self.store.end_samplers_of_snapshot,
            snapshots_per_run=limits.snapshots_per_run,
            loaded=limits.loaded_adapters,
        )
        executor = Executor(engine, self.store, self._folders, adapters)
        self.scheduler = Scheduler(executor, self.futures, samples, limits)
        self._last_seen: dict[str, float] = {}
        self._used_runs: dict[str, float] = {}
        self._sweeper: asyncio.Task[None] | None = None

    # ---- life of the process ----

    async def startup(self) -> None:
        """Begin to serve. What an earlier process had in memory has ended; what it saved is there."""
        self.store.recover("the server was restarted")
        self._folders.collect(self.store.folders_in_use, unfinished=True)
        now = time.monotonic()
        self._last_seen = dict.fromkeys(self.store.live_session_ids(), now)
        self.scheduler.start()
        self._sweeper = asyncio.create_task(self._sweep_for_ever())

    def begin_shutdown(self) -> None:
        """Answer every held poll at once, so that connections can close."""
        self.futures.close()

    async def shutdown(self) -> None:
        """Finish the engine call under way, and stop."""
        self.begin_shutdown()
        if self._sweeper is not None:
            self._sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweeper
        if not await asyncio.to_thread(self.scheduler.stop, _STOP_SECONDS):
            logger.warning("the engine is still busy after %.0f s; leaving it", _STOP_SECONDS)
        self.store.touch_runs(self._used_runs)
        self.store.close()

    async def _sweep_for_ever(self) -> None:
        while True:
            pause = self.settings.limits.sweep_seconds
            due = time.monotonic() + pause
            await asyncio.sleep(pause)
            if (late := time.monotonic() - due) > pause:
                # This process stood still (a suspended machine or container), which proves nobody silent.
                logger.warning("the server stood still for %.0f s", late)
                for session_id, seen in list(self._last_seen.items()):  # others add and remove meanwhile
                    self._last_seen[session_id] = seen + late
                self.scheduler.wait_longer(late)
                continue
            await asyncio.to_thread(self.sweep)

    def sweep(self) -> None:
        """Let go of what has expired: results, gaps, sessions, checkpoints, folders. Each by itself."""
        for what, part in (
            ("forgetting results", self.futures.sweep),
            ("giving up gaps", self.scheduler.give_up_gaps),
            ("ending silent sessions", self._end_silent_sessions),
            ("noting which runs are in use", self._touch_used_runs),
            ("deleting expired checkpoints", self.store.drop_expired_checkpoints),
            ("collecting folders", self._collect_folders),
        ):
            if isinstance(error := attempt(what, part), ServerError):
                logger.warning("the sweep goes on after this: %s", error)

    def _end_silent_sessions(self) -> None:
        limits = self.settings.limits
        deadline = time.monotonic() - limits.session_seconds
        for session_id, seen in list(self._last_seen.items()):
            if seen < deadline:
                silent = f"it gave no sign of life for {limits.session_seconds:.0f} s"
                attempt("ending a session", partial(self.end_session, session_id, silent))

    def _touch_used_runs(self) -> None:
        used, self._used_runs = self._used_runs, {}
        try:
            self.store.touch_runs(used)
        except BaseException:
            self._used_runs = used | self._used_runs
            raise

    def _collect_folders(self) -> None:
        self._folders.collect(lambda: self.store.folders_in_use() | self.scheduler.folders_in_use())

    # ---- models ----

    def model(self, name: str) -> ModelInfo:
        """What is known of a base model.

        Raises:
            UnknownName: it is not offered here.
        """
        if name not in self.catalog:
            raise UnknownName(
                f"base model {name!r} is not offered here; this server has {sorted(self.catalog)}"
            )
        return self.catalog[name]

    @contextmanager
    def reading(self, checkpoint: CheckpointRow) -> Iterator[Path]:
        """Around what reads a checkpoint's files: they stay until it is done, whoever deletes the checkpoint.

        Raises:
            UnknownName: it was deleted since it was looked up, and its files are gone.
        """
        with self._folders.reading(checkpoint.folder) as folder:
            if folder is None:
                raise UnknownName(f"{checkpoint.path} was deleted, replaced, or has expired")
            yield folder

    # ---- sessions ----

    def open_session(
        self,
        owner: str,
        *,
        tags: list[str],
        user_metadata: dict[str, Any],
        display_name: str | None,
        project_id: str | None,
    ) -> str:
        """A new session's id."""
        session_id = f"sess-{secrets.token_hex(8)}"
        self.store.add_session(
            session_id,
            owner,
            tags=tags,
            user_metadata=user_metadata,
            display_name=display_name,
            project_id=project_id,
        )
        self.saw(session_id)
        return session_id

    def saw(self, session_id: str) -> None:
        """The session gave a sign of life."""
        self._last_seen[session_id] = time.monotonic()

    def end_session(
        self, session_id: str, reason: str, *, finish: tuple[str, str | None] | None = None
    ) -> None:
        """End a session: free its runs and snapshots, and fail what still waits. Once is enough.

        Args:
            finish: what its client reported, and details; None if something else ended it.
        """
        runs, samplers = self.store.end_session(session_id, reason, finish=finish)
        # Not before: a session that could not be ended is tried again.
        self._last_seen.pop(session_id, None)
        if self.custom_losses is not None:
            self.custom_losses.drop_session(session_id)
        ended = f"session {session_id} has ended, as {reason}"
        self.scheduler.end_samples(session_id, ended)
        for model_id in runs:
            self.scheduler.free_run(model_id, ended)
        for sampler in samplers:
            if sampler.adapter_id is not None and sampler.folder is None:
                self.scheduler.free_snapshot(sampler.adapter_id)

    # ---- custom losses ----

    async def add_custom_loss(
        self, owner: str, session_id: str, key: Hashable, digest: bytes, graph: LossGraph
    ) -> str:
        """Check a loss and keep it for its session, once however often it is sent; its request id.

        Raises:
            BadRequest: custom losses are off, or the graph is not one that this server runs.
            Gone: the session ended meanwhile.
        """
        losses = self.require_custom_losses()
        program = await asyncio.to_thread(self._compile_loss, graph)
        with self._once(owner, key, digest) as ticket:
            if ticket.is_new:
                losses.add(session_id, program)
                try:
                    self.store.live_session(session_id, owner)
                except Gone:
                    # It ended meanwhile, perhaps before there was this loss to let go of.
                    losses.drop_session(session_id)
                    raise
                answer = {"loss_id": graph.loss_id, "type": "create_custom_loss"}
                self.futures.settle(ticket.request_id, Done(json.dumps(answer).encode()))
        return ticket.request_id

    def require_custom_losses(self) -> CustomLosses:
        """The losses that callers uploaded.

        Raises:
            BadRequest: this server takes none.
        """
        if self.custom_losses is None:
            raise BadRequest(
                "this server runs no custom losses: start it with `tinkerlite serve --custom-losses`. "
                "Without that, forward_backward_custom runs the loss in the client"
            )
        return self.custom_losses

    # ---- work ----

    def submit(
        self, owner: str, key: Hashable | None, digest: bytes, make: Callable[[str], Operation]
    ) -> str:
        """Accept an operation, once however often it is sent; return its request id.

        Args:
            key: names it for repeats; None if the caller gave no number.
            digest: of its content.
            make: the operation, from its request id.

        Raises:
            BadRequest, UnknownName, Busy: it cannot be accepted, and nothing is kept of it.
        """
        with self._once(owner, key, digest) as ticket:
            if ticket.is_new:
                operation = make(ticket.request_id)
                self.scheduler.accept(operation, owner)
                self._used_runs[operation.model_id] = time.time()
        return ticket.request_id

    def submit_run(
        self,
        owner: str,
        session_id: str,
        digest: bytes,
        operation: Callable[[str], CreateRun | LoadRun],
        *,
        adapter: AdapterConfig | None,
        user_metadata: dict[str, Any],
    ) -> str:
        """Accept what makes a training run, and register the run."""
        made = operation("")
        with self._once(owner, ("run", made.model_id), digest) as ticket:
            if ticket.is_new:
                made = operation(ticket.request_id)
                self._register_run(owner, session_id, made, adapter, user_metadata)
        return ticket.request_id

    def _register_run(
        self,
        owner: str,
        session_id: str,
        operation: CreateRun | LoadRun,
        adapter: AdapterConfig | None,
        user_metadata: dict[str, Any],
    ) -> None:
        if self.store.find_run(operation.model_id) is not None:
            raise BadRequest(f"training run {operation.model_id!r} exists already; count model_seq_id up")
        # First the row: by the time that the operation has run, it must be there to be changed.
        self.store.add_run(
            operation.model_id,
            session_id=session_id,
            owner=owner,
            base_model=operation.base_model,
            adapter=adapter,
            user_metadata=user_metadata,
        )
        try:
            self.scheduler.accept(operation, owner)
        except ServerError:
            self.store.delete_run(operation.model_id)
            raise
        session = self.store.session(session_id, owner)
        if session.ended:
            # It ended meanwhile, perhaps before there was this run to free.
            self.store.end_run(operation.model_id, session.ended)
            self.scheduler.free_run(operation.model_id, f"session {session_id} has ended, as {session.ended}")

    def submit_sample(
        self,
        owner: str,
        key: Hashable | None,
        digest: bytes,
        make: Callable[[str], Sample],
        group: Hashable | None = None,
    ) -> str:
        """Accept a sample request, once however often it is sent; return its request id.

        Args:
            group: the samples that are waited for together with it.

        Raises:
            BadRequest, Busy: it cannot be accepted, and nothing is kept of it.
        """
        with self._once(owner, key, digest, group) as ticket:
            if ticket.is_new:
                self.scheduler.accept_sample(make(ticket.request_id))
        return ticket.request_id

    @contextmanager
    def _once(
        self, owner: str, key: Hashable | None, digest: bytes, group: Hashable | None = None
    ) -> Iterator[Ticket]:
        """Around the acceptance of a request: if that fails, nothing is kept of it."""
        ticket = self.futures.open(owner, key, digest, group)
        try:
            yield ticket
        except Exception:
            if ticket.is_new:
                self.futures.discard(ticket.request_id)
            raise

    def refuse(self, owner: str, refusal: Refusal) -> None:
        """Note that a numbered request was turned down."""
        self.scheduler.refuse(refusal, owner)
