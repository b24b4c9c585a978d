"""Trackers: the rows of a run in TensorBoard, Weights & Biases or trackio, while it goes on.

Each through its own library, none of which is needed or imported unless it is asked for; where
they send things is theirs to say (WANDB_MODE=offline, TRACKIO_DIR, ...). metrics.jsonl has
everything in any case. A run that is resumed goes on under the same name.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from cookbook.metrics import Row, figures

PROJECT = "tinkerlite"
"""Under which Weights & Biases and trackio file runs."""


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a tracker is told about a run."""

    name: str
    """Unique, and the same when the run is resumed."""
    folder: Path
    settings: Mapping[str, Any]
    first_step: int
    """Step of the next row. Rows from there on may have been logged before a crash."""


class Tracker(Protocol):
    """Takes rows."""

    def log(self, row: Row) -> None:
        """Show one more step: every number of the row, nested ones by path."""
        ...

    def close(self) -> None:
        """Write out what is still in memory."""
        ...


def check_trackers(names: Sequence[str]) -> None:
    """Exits with advice if one of them does not exist, or its library is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise SystemExit(f"unknown tracker {name!r}; choose one of {', '.join(TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise SystemExit(f"--track {name} needs its library: pip install {name}")


@contextmanager
def open_trackers(names: Sequence[str], run: TrackedRun) -> Generator[list[Tracker], None, None]:
    """The trackers of these names, closed with the block."""
    check_trackers(names)
    with ExitStack() as closing:
        trackers: list[Tracker] = []
        for name in dict.fromkeys(names):
            tracker = TRACKERS[name](run)
            closing.callback(tracker.close)
            trackers.append(tracker)
        yield trackers


class TensorBoard:
    """Event files in RUN/tensorboard; look at them with `tensorboard --logdir runs`."""

    def __init__(self, run: TrackedRun) -> None:
        files = import_module("tensorboard.summary.writer.event_file_writer")
        self._events = import_module("tensorboard.compat.proto.event_pb2")
        self._summaries = import_module("tensorboard.compat.proto.summary_pb2")
        self._writer = files.EventFileWriter(str(run.folder / "tensorboard"))
        # Readers drop what was logged from this step on, by the process that was killed.
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        self._writer.add_event(self._events.Event(session_log=start, step=run.first_step))

    def log(self, row: Row) -> None:
        """See `Tracker`."""
        values = [
            self._summaries.Summary.Value(tag=name, simple_value=value)
            for name, value in _without_step(row).items()
        ]
        summary = self._summaries.Summary(value=values)
        self._writer.add_event(self._events.Event(summary=summary, step=row["step"]))
        self._writer.flush()

    def close(self) -> None:
        """See `Tracker`."""
        self._writer.close()


class WeightsAndBiases:
    """A W&B run; WANDB_MODE=offline keeps it in RUN/wandb, for `wandb sync` to send later.

    Rows of steps that it has already, from before a crash, it leaves as they are: they would be the same.
    """

    def __init__(self, run: TrackedRun) -> None:
        wandb = import_module("wandb")
        run.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.run = wandb.init(
                project=PROJECT,
                name=run.name,
                id=run.name,
                resume="allow",
                dir=str(run.folder),
                config=dict(run.settings),
            )
        except wandb.Error as error:
            raise SystemExit(
                f"--track wandb: {error}\nLog in with `wandb login`, or set WANDB_MODE=offline to keep the "
                "run on this machine."
            ) from error

    def log(self, row: Row) -> None:
        """See `Tracker`."""
        # At once: otherwise it waits for the next step, and a run that is killed lacks its last row.
        self.run.log(_without_step(row), step=row["step"], commit=True)

    def close(self) -> None:
        """See `Tracker`."""
        self.run.finish()


class Trackio:
    """A trackio run, on this machine unless TRACKIO_SPACE_ID says otherwise; see it with `trackio show`.

    It cannot take rows back, so some made again after a crash may be there twice.
    """

    def __init__(self, run: TrackedRun) -> None:
        trackio = import_module("trackio")
        self._run = trackio.init(
            project=PROJECT, name=run.name, resume="allow", config=dict(run.settings), embed=False
        )

    def log(self, row: Row) -> None:
        """See `Tracker`."""
        self._run.log(_without_step(row), step=row["step"])

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}
"""Trackers by the names that recipes' `--track` takes, which are those of their packages."""


def _without_step(row: Row) -> dict[str, float]:
    return {name: value for name, value in figures(row).items() if name != "step"}
