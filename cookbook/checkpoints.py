"""Checkpoints of a run that is going on: saved on the server, noted in the run's folder.

Only the latest are kept, and those expire if nobody comes back for them.
"""

from __future__ import annotations

from cookbook.run_folder import Checkpoint, RunFolder
from tinkerlite import NotFoundError, RestClient, TinkerError, TrainingClient

KEPT = 2
"""The one to resume from, and one from before the steps that may have spoiled it."""
KEPT_SECONDS = 14 * 24 * 3600
"""How long a checkpoint that is not replaced stays on the server."""


class Checkpoints:
    """Saves every so many steps; call it before each step, with the number of updates done.

    Args:
        every: steps between two; 0 saves none.
        resumed: the checkpoint that the run went on from, which is of the same run.
    """

    def __init__(
        self,
        folder: RunFolder,
        student: TrainingClient,
        rest: RestClient,
        *,
        every: int,
        resumed: Checkpoint | None = None,
    ) -> None:
        self._folder = folder
        self._student = student
        self._rest = rest
        self._every = every
        self._resumed_at = resumed.step if resumed else 0
        self.saved: list[Checkpoint] = [resumed] if resumed else []
        """Those on the server, the latest last."""

    def __call__(self, step: int) -> None:
        """Save if it is time to."""
        if self._every and step % self._every == 0 and step > self._resumed_at:
            self.save(step)

    def save(self, step: int) -> None:
        """Save now; what `--resume` would find changes when all of it is there."""
        saved = self._student.save_state(f"step-{step}", ttl_seconds=KEPT_SECONDS).result()
        checkpoint = Checkpoint(step=step, path=saved.path)
        self._folder.save_checkpoint(checkpoint)
        self.saved.append(checkpoint)
        self._drop_all_but(KEPT)

    def finish(self, final: Checkpoint) -> None:
        """The run is over, and its weights are saved under a name of their own."""
        self._folder.save_checkpoint(final, is_finished=True)
        self._drop_all_but(0)

    def _drop_all_but(self, count: int) -> None:
        while len(self.saved) > count:
            path = self.saved.pop(0).path
            try:
                self._rest.delete_checkpoint_from_tinker_path(path).result()
            except NotFoundError:  # expired, or deleted by hand
                pass
            except TinkerError as error:  # no reason to end a run: it expires
                print(f"checkpoint {path} could not be deleted, and stays until it expires: {error}")
