"""Keeping a run: its rows in a file, on the screen and in trackers, its weights in checkpoints.

What a run leaves is enough to go on with it after it was killed (`run_folder`). Knows nothing
about how it trains.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cookbook.checkpoints import Checkpoints
from cookbook.command_line import NAMES
from cookbook.file_lock import InUse
from cookbook.guards import RunStopped
from cookbook.loop import Record
from cookbook.metrics import MetricsFile, Row
from cookbook.run_folder import CannotResume, Checkpoint, Position, RunFolder
from cookbook.table import Column, StepTable
from cookbook.tracking import TrackedRun, Tracker, check_trackers, open_trackers
from tinkerlite import ServiceClient, TinkerError, TrainingClient


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """What is kept of the run, and whether it goes on with an earlier one."""

    out: str = ""
    """Folder for metrics.jsonl and the rest; runs/RECIPE if not given."""
    track: NAMES = ()
    """Show the figures in tensorboard, wandb or trackio, too; may be repeated."""
    checkpoint_every: int = 10
    """Steps between checkpoints to resume from, which the server keeps; 0 saves none."""
    resume: bool = False
    """Go on with the run in the folder, from its last checkpoint, as if it had not been killed."""


@dataclass(frozen=True)
class Kept:
    """A run whose rows and checkpoints are being kept."""

    record: Record
    earlier: Sequence[Row]
    """Rows of the steps that were done before this process."""
    checkpoint: Checkpoints


@contextmanager
def kept_run(
    name: str, keeping: Keeping, *, settings: dict[str, Any], base_url: str
) -> Generator[KeptRun, None, None]:
    """A run whose folder nobody else works in, from before it is read until the end of the block.

    Exits where another process does, or where there is no such run to resume.
    """
    check_trackers(keeping.track)
    if keeping.resume and not _outlives_process(base_url):
        raise SystemExit(
            "--resume: local:// keeps its checkpoints in a folder that ends with the process. Set "
            "TINKERLITE_DATA_DIR, for the run and to resume it, or use `tinkerlite serve`."
        )
    folder = RunFolder(Path(keeping.out or f"runs/{name}"))
    with ExitStack() as stack:
        position = None
        try:
            if folder.path.exists() or not keeping.resume:
                stack.enter_context(folder.held())
            if keeping.resume:
                position = folder.resume(name, settings)
        except InUse as error:
            raise SystemExit(f"{error}.") from error
        except CannotResume as error:
            raise SystemExit(f"--resume: {error}.") from error
        every = keeping.checkpoint_every if _outlives_process(base_url) else 0
        yield KeptRun(name, folder, position, settings=settings, track=keeping.track, every=every)


class KeptRun:
    """What is kept of one run: its folder, what is saved on the server, and the screen. See `kept_run`."""

    def __init__(
        self,
        name: str,
        folder: RunFolder,
        position: Position | None,
        *,
        settings: dict[str, Any],
        track: Sequence[str],
        every: int,
    ) -> None:
        self._name = name
        self.folder = folder
        self._position = position
        self._settings = settings
        self._track = track
        self._every = every

    @property
    def resumed(self) -> Checkpoint | None:
        """Where the run goes on from; None starts at step 0."""
        return self._position and self._position.checkpoint

    @contextmanager
    def open(
        self, service: ServiceClient, student: TrainingClient, columns: Sequence[Column]
    ) -> Generator[Kept, None, None]:
        """Takes rows and checkpoints until the end of the block. Until then the run there is as it was."""
        position = self._position or self.folder.start(self._name, self._settings)
        rest = service.create_rest_client()
        checkpoints = Checkpoints(self.folder, student, rest, every=self._every, resumed=position.checkpoint)
        tracked = TrackedRun(
            name=f"{self._name}-{position.run_id}",
            folder=self.folder.path,
            settings=self._settings,
            first_step=len(position.rows),
        )
        if position.checkpoint:
            print(f"resumed at step {position.checkpoint.step}")
        with (
            MetricsFile(self.folder.metrics, keep=len(position.rows)) as metrics,
            open_trackers(self._track, tracked) as trackers,
            _stopping_with_reason(checkpoints),
        ):
            record = recorder(self._name, metrics, columns, trackers=trackers, earlier=position.rows)
            yield Kept(record, position.rows, checkpoints)


def _outlives_process(base_url: str) -> bool:
    """Whether the backend's checkpoints do; those of local:// only in a folder that was named."""
    named = (base_url, os.environ.get("TINKERLITE_BASE_URL"), os.environ.get("TINKER_BASE_URL"))
    url = next(filter(None, named), "")  # as the client chooses
    return not url.strip().startswith("local://") or bool(os.environ.get("TINKERLITE_DATA_DIR"))


def recorder(
    name: str,
    metrics: MetricsFile,
    columns: Sequence[Column],
    console: Console | None = None,
    *,
    trackers: Sequence[Tracker] = (),
    earlier: Sequence[Row] = (),
) -> Record:
    """Takes rows: each goes to the file, tagged with the run's name, to trackers, and to a table on screen.

    `earlier` are rows that the file has already; they are shown again.
    """
    table = StepTable(name, columns, console)
    for row in earlier:
        table.add(row)

    def record(row: Row) -> None:
        metrics.write({"run": name, **row})
        for tracker in trackers:
            tracker.log(row)
        table.add(row)

    return record


@contextmanager
def _stopping_with_reason(checkpoints: Checkpoints) -> Generator[None, None, None]:
    """Exits with the reason, where a guard stops the run inside the block, and with where to go back to."""
    try:
        yield
    except RunStopped as stopped:
        left = "".join(f"\nafter step {c.step}: --start-from {c.path}" for c in checkpoints.saved)
        raise SystemExit(f"stopped at {stopped}{left}") from stopped
    except TinkerError as error:
        if checkpoints.saved:
            step = checkpoints.saved[-1].step
            error.add_note(f"To go on from step {step}, give the same command with --resume.")
        raise
