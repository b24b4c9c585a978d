"""Run folders: what a run leaves on disk, and where it goes on from after it was killed.

    run.json          the recipe, its settings, and an id
    metrics.jsonl     one row a step, each on disk before the next step begins
    checkpoint.json   the weights last saved on the server, and how many updates they have seen

A run that goes on has the weights and the optimizer of its checkpoint, and the rows up to there.
Problems, seeds and learning rates follow from the step, so every further row is the one that it
would have made. Rows made after the checkpoint are dropped, and made again.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cookbook.file_lock import locked
from cookbook.metrics import Row, read_metrics

WHEN_TO_STOP = frozenset({"stop_when_collapsed", "max_truncated_fraction"})
"""Settings that change no row, only after which one a run is stopped: a run that was may go on without."""


class CannotResume(ValueError):
    """There is no such run to go on with, or it was another."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Saved training weights, with their optimizer."""

    step: int
    """Updates that they have seen."""
    path: str
    """tinker://RUN/weights/NAME."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands before its next step."""

    run_id: str
    """The same for all processes that work on one run; another for every other run."""
    rows: list[Row]
    """Of the steps that are done."""
    checkpoint: Checkpoint | None
    """The weights to go on from; None at the very beginning."""


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self._run = path / "run.json"
        self._checkpoint = path / "checkpoint.json"

    @contextmanager
    def held(self) -> Generator[None, None, None]:
        """Nobody else works in it until the end of the block, or of the process.

        Raises:
            InUse: somebody does already.
        """
        with locked(self.path / ".lock", f"the run in {self.path}"):
            yield

    def start(self, recipe: str, settings: Mapping[str, Any]) -> Position:
        """Begin a run; what an earlier one left here no longer counts."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._checkpoint.unlink(missing_ok=True)
        run_id = uuid.uuid4().hex[:8]
        write_whole(self._run, {"recipe": recipe, "id": run_id, "settings": dict(settings)})
        return Position(run_id=run_id, rows=[], checkpoint=None)

    def resume(self, recipe: str, settings: Mapping[str, Any]) -> Position:
        """Where the run in this folder stands. Changes nothing.

        Raises:
            CannotResume: there is none, it was started otherwise, it has no checkpoint, or it is finished.
        """
        if not self._run.exists():
            raise CannotResume(f"{self.path} has no run to resume; start one without --resume")
        run: dict[str, Any] = json.loads(self._run.read_text(encoding="utf-8"))
        self._check_same(run, recipe, settings)
        if not self._checkpoint.exists():
            raise CannotResume(
                f"the run in {self.path} has no checkpoint: it was killed before its first one (see "
                "--checkpoint-every). Start it again without --resume"
            )
        saved: dict[str, Any] = json.loads(self._checkpoint.read_text(encoding="utf-8"))
        checkpoint = Checkpoint(step=saved["step"], path=saved["path"])
        if saved["is_finished"]:
            raise CannotResume(
                f"the run in {self.path} is finished, after {checkpoint.step} steps. To train on from its "
                f"weights, start another: --start-from {checkpoint.path} --out FOLDER"
            )
        rows = read_metrics(self.metrics) if self.metrics.exists() else []
        if len(rows) < checkpoint.step:
            raise CannotResume(
                f"{self.metrics} has {len(rows)} rows and the checkpoint {checkpoint.step} updates: "
                "they are not of the same run"
            )
        return Position(run_id=run["id"], rows=list(rows[: checkpoint.step]), checkpoint=checkpoint)

    def save_checkpoint(self, checkpoint: Checkpoint, *, is_finished: bool = False) -> None:
        """Make this the one to go on from. The old one counts until the new one is on disk."""
        write_whole(self._checkpoint, {**asdict(checkpoint), "is_finished": is_finished})

    def _check_same(self, run: Mapping[str, Any], recipe: str, settings: Mapping[str, Any]) -> None:
        if run["recipe"] != recipe:
            raise CannotResume(f"{self.path} has a run of {run['recipe']}, not of {recipe}")
        before: dict[str, Any] = run["settings"]
        # As JSON has them: a tuple comes back as a list.
        given: dict[str, Any] = json.loads(json.dumps(dict(settings)))
        changed = [
            f"{name} = {before.get(name)!r}, not {given.get(name)!r}"
            for name in dict.fromkeys([*given, *before])
            if name not in WHEN_TO_STOP and before.get(name) != given.get(name)
        ]
        if changed:
            raise CannotResume(
                f"the run in {self.path} has {'; '.join(changed)}. What is resumed goes on as it was: give "
                "the flags that it was started with, or start another run with --out"
            )


def write_whole(path: Path, value: object) -> None:
    """Write JSON so that a crash leaves the old file or the new one, and never a part."""
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
