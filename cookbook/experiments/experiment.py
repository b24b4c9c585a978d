"""What an experiment is: sizes, one function that runs it, and what is made of its results.

Knows nothing about flags, servers or pages (`command`, `pages`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from rich.console import Console

from cookbook.experiments.base_models import BaseModel
from cookbook.keeping import recorder
from cookbook.loop import Record
from cookbook.metrics import MetricsFile, Row
from cookbook.table import ON_POLICY_COLUMNS, Column
from cookbook.tracking import Tracker
from tinkerlite import ServiceClient

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Size = Literal["smoke", "small", "full"]
"""`smoke`: that everything works, in seconds, on a random model. `small`: the finding, in about 20 minutes
a seed on two cores. `full`: the set-up of the post."""

Setting = TypeVar("Setting")
"""A frozen dataclass with everything that changes a result or a cost; it is written into the results."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What a run of an experiment works with."""

    service: ServiceClient
    """A session on the server."""
    models: Sequence[str]
    """The server's names for the base models, in the order of `Experiment.models`."""
    seed: int
    """Of everything that is drawn in this run."""
    metrics: MetricsFile
    """The results, as they are made."""
    console: Console
    trackers: Callable[[str], AbstractContextManager[Sequence[Tracker]]]
    """Where else the rows of a run of this name are shown."""

    @contextmanager
    def record(
        self, run: str, columns: Sequence[Column] = ON_POLICY_COLUMNS
    ) -> Generator[Record, None, None]:
        """Takes the rows of one run, from `train` or `train_supervised`, and writes each with its name."""
        with self.trackers(run) as trackers:
            yield recorder(run, self.metrics, columns, self.console, trackers=trackers)

    def note(self, run: str, **figures: Any) -> None:
        """Write one row of figures that belong to no step."""
        self.metrics.write({"run": run, **figures})


@dataclass(frozen=True, kw_only=True)
class Result:
    """One seed of one experiment at one size."""

    seed: int
    header: Row
    """Command, setting, hardware, versions and duration."""
    rows: Sequence[Row]

    def of(self, run: str) -> list[Row]:
        """The rows of a run, in order.

        Raises:
            KeyError: there are none.
        """
        rows = [row for row in self.rows if row["run"] == run]
        if not rows:
            raise KeyError(
                f"no run {run!r} in these results; there are {sorted({r['run'] for r in self.rows})}"
            )
        return rows

    @property
    def runs(self) -> list[str]:
        """Names of the runs, in order of appearance."""
        return list(dict.fromkeys(row["run"] for row in self.rows))


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A claim with a number in it, and what was measured."""

    claim: str
    """The bar, in words."""
    measured: str
    """What came out, over all seeds."""
    holds: bool | None = None
    """None where the results cannot say."""


@dataclass(frozen=True, kw_only=True)
class Experiment(Generic[Setting]):
    """One finding, and how to look for it."""

    number: str
    """As in "E4"; sets the order."""
    name: str
    """Of its package."""
    title: str
    """What it shows, in one line."""
    claim: str
    """What the post found, with its numbers, in a sentence or two."""
    sizes: Mapping[Size, Setting]
    """Settings by size; "smoke" and "small" at least."""
    models: Callable[[Setting], Sequence[BaseModel]]
    """Base models that the server must offer."""
    run: Callable[[Bench, Setting], None]
    """Everything, for one seed. Rows go to `bench.record` and `bench.note`."""
    tables: Callable[[Sequence[Result]], str]
    """Markdown tables of all seeds, with the post's figures beside ours."""
    bars: Callable[[Sequence[Result]], Sequence[Bar]]
    """What can be held against a number."""
    figure: Callable[[Sequence[Result]], Figure]
    """The picture, by matplotlib."""

    @property
    def folder(self) -> Path:
        """Its package."""
        return Path(__file__).parent / self.name
