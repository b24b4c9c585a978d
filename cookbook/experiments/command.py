"""The command of every experiment: `python -m cookbook.experiments.NAME --size small --seeds 0 1 2`."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from typing import Any

from rich.console import Console

from cookbook.experiments.base_models import made_models
from cookbook.experiments.experiment import Bench, Experiment, Size
from cookbook.experiments.pages import write_figure, write_pages
from cookbook.experiments.results import changed_since, check_one_setting, load_results, result_file, writing
from cookbook.file_lock import InUse, locked
from cookbook.guards import RunStopped
from cookbook.runs import connect
from cookbook.server_process import running_server
from cookbook.tracking import TRACKERS, TrackedRun, Tracker, check_trackers, open_trackers
from tinkerlite import ServiceClient


def main(experiment: Experiment[Any], argv: Sequence[str] | None = None) -> int:
    """Run the seeds that the command line names, then make tables and figure; returns an exit status.

    A seed that a guard stops, or that another process is at work on, has no results; the others go on.
    """
    given = _parse(experiment, argv)
    out: Path = given.out or default_out(experiment, given.size)
    console = Console(highlight=False)
    check_trackers(given.track)
    if find_spec("matplotlib") is None:  # an hour of runs must not end in this
        console.print("figures need matplotlib, which is not installed: pip install --group experiments")
        return 2
    stopped = False
    seeds: list[int] = [] if given.no_run else given.seeds
    for result in load_results(experiment, given.size, out) if seeds else []:
        changes = [] if result.seed in seeds else changed_since(experiment, result)
        if changes:  # no mean can be made of both, and that is better known before than after
            console.print(
                f"seed {result.seed} in {out} was run with other settings: {'; '.join(changes)}.\n"
                f"Run it again with these (--seeds {result.seed} ...), or write to another folder (--out).",
                markup=False,
            )
            return 2
    wanted = experiment.models(experiment.sizes[given.size])
    if seeds and given.base_url and not all(isinstance(model, str) for model in wanted):
        console.print(
            f"the {given.size} size makes models of its own, which no server at {given.base_url} has: leave "
            "--base-url away, and a server is started here",
            markup=False,
            soft_wrap=True,
        )
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        started = time.monotonic()
        models: Sequence[str] = []
        if seeds:
            models = made_models(wanted, Path(scratch) / "models")
        making = time.monotonic() - started
        for seed in seeds:
            console.rule(f"{experiment.number} {experiment.title}: {given.size}, seed {seed}")
            file = result_file(out, given.size, seed)
            try:
                server = (
                    nullcontext(given.base_url)
                    if given.base_url
                    else running_server(
                        models, Path(scratch) / f"server-{seed}", out / f"{given.size}-server.log"
                    )
                )
                alone = locked(file.with_suffix(".lock"), f"seed {seed} of size {given.size} in {out}")
                with alone, server as url, connect(url) as service:
                    run_seed(experiment, given.size, seed, service, models, out, console, given.track, making)
                console.print(f"results: {file}")
            except RunStopped as reason:
                stopped = True
                console.print(f"seed {seed} stopped at {reason}\nits rows: {file.with_suffix('.part')}")
            except InUse as error:
                stopped = True
                console.print(f"{error}", markup=False, soft_wrap=True)
    results = load_results(experiment, given.size, out)
    if not results:
        console.print(f"no results of size {given.size} in {out}")
        return 1
    check_one_setting(results)
    console.print(experiment.tables(results), markup=False, soft_wrap=True)
    for bar in experiment.bars(results):
        console.print(f"{bar.claim}: {bar.measured}", markup=False, soft_wrap=True)
    if out == experiment.folder / "results":
        write_pages([experiment])
    else:
        console.print(f"figure: {write_figure(experiment, results, out)}")
    return 1 if stopped else 0


def run_seed(
    experiment: Experiment[Any],
    size: Size,
    seed: int,
    service: ServiceClient,
    models: Sequence[str],
    out: Path,
    console: Console,
    track: Sequence[str] = (),
    making: float = 0.0,
) -> None:
    """One seed on a server that runs and offers the models, which took `making` seconds to make."""
    offered = service.get_server_capabilities().supported_models
    dtypes = sorted({model.dtype for model in offered if model.model_name in models and model.dtype})
    trackers = _trackers(experiment, size, seed, track)
    with writing(experiment, size, seed, out, dtypes, making) as metrics:
        bench = Bench(
            service=service, models=models, seed=seed, metrics=metrics, console=console, trackers=trackers
        )
        experiment.run(bench, experiment.sizes[size])


def _trackers(
    experiment: Experiment[Any], size: Size, seed: int, track: Sequence[str]
) -> Callable[[str], AbstractContextManager[Sequence[Tracker]]]:
    """Opens the trackers of one run. A seed that is run again is another run."""
    attempt = token_hex(2)
    settings = {"size": size, "seed": seed, **asdict(experiment.sizes[size])}

    def of_run(run: str) -> AbstractContextManager[Sequence[Tracker]]:
        name = f"{experiment.name}-{run}-{size}-seed-{seed}-{attempt}".replace(" ", "-")
        folder = Path("runs") / "experiments" / experiment.name / name
        return open_trackers(track, TrackedRun(name=name, folder=folder, settings=settings, first_step=0))

    return of_run


def default_out(experiment: Experiment[Any], size: Size) -> Path:
    """The experiment's own results; a smoke run's mean nothing, and go to runs/."""
    return (
        Path("runs") / "experiments" / experiment.name if size == "smoke" else experiment.folder / "results"
    )


def _parse(experiment: Experiment[Any], argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m cookbook.experiments.{experiment.name}",
        description=f"{experiment.number}: {experiment.title}. {experiment.claim}",
    )
    parser.add_argument("--size", choices=list(experiment.sizes), default="small", help="setting [small]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run each [0]")
    parser.add_argument("--base-url", help="a server that offers the models, instead of one started here")
    parser.add_argument("--out", type=Path, help="folder of the result files [the experiment's own results/]")
    parser.add_argument(
        "--track",
        action="append",
        default=[],
        choices=list(TRACKERS),
        help="show the figures there, too; may be repeated",
    )
    parser.add_argument("--no-run", action="store_true", help="only show what the results that are there say")
    return parser.parse_args(argv)
