"""The benchmark's command line.

    python -m benchmarks [--quick] [--only ROW ...] [--model NAME] [--output FOLDER]

Measures every row, prints a table, and writes JSON and a figure: about two hours on two cores, 5 to 12
minutes with --quick. Whatever is missing (a package, memory, an environment) skips that entry of a row by
name, with the reason.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from benchmarks import machine, measure
from benchmarks.environments import ENVIRONMENTS
from benchmarks.figure import draw
from benchmarks.floor import Floor, Rates
from benchmarks.homes import Workers
from benchmarks.report import OURS, Result, number, print_table, write_json
from benchmarks.rows import QUICK_NAMES, ROWS, Row
from benchmarks.work import Job, Unavailable, Work
from cookbook.server_process import ServerDidNotStart, running_server

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
RESULTS = Path(__file__).parent / "results"

TIMEOUT_SECONDS, QUICK_TIMEOUT_SECONDS = 1800.0, 120.0
"""Longest that one measurement may take before it is skipped."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit status."""
    given = _parser().parse_args(argv)
    load = machine.load()  # before this adds to it
    # What others are given, and the floor is measured on: everyone's numbers are of the processor.
    os.environ["TINKERLITE_DEVICE"] = "cpu"
    # Installed packages come compiled; the project's own files must not be compiled again at every start.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # However it is ended, servers and engines end with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # In a pipe or a log there is no width to keep to.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(f"measuring the machine: matrix products and memory, at the shapes of {given.model} ...")
    job = Job(function="benchmarks.floor:measure", model=given.model, work=Work())
    try:
        measured = measure.run(job, TIMEOUT_SECONDS)
    except Unavailable as error:
        console.print(f"the machine could not be measured with model {given.model!r}: {error}")
        return 1
    facts = {name: measured[name] for name in ("folder", "vocab_size", "dtype")}
    context = {
        "model": given.model,
        "quick": given.quick,
        **machine.describe(facts["dtype"], measured["threads"]),
        "load_average": load,
        "environments": _environments(),
    }
    rows = [row for row in ROWS if not given.only or row.key in given.only]
    with _shared_server(given) as url, Workers() as workers:
        bench = Bench(replace(job, **facts, base_url=url, quick=given.quick), workers, console)
        results = list(bench.measured(rows))
    if not results:
        return 130
    rates = [Rates.from_measured(measured)]
    complete = len(results) == len(rows) and not given.only
    if complete and not given.quick:
        # A floor is the machine undisturbed, and a disturbance may have come and gone since the start.
        with suppress(Unavailable):
            rates.append(Rates.from_measured(measure.run(job, TIMEOUT_SECONDS)))
    floor = Floor.from_measured(measured, Rates.best(rates))
    results = [bench.with_floor(row, result, floor) for row, result in zip(rows, results, strict=False)]
    print_table(results, console)
    _write(given, {**context, "machine": asdict(floor.rates)}, results, console, complete=complete)
    return 0 if len(results) == len(rows) else 130


class Bench:
    """Measures rows: everyone in a row does the same work, one after the other, each by itself."""

    def __init__(self, job: Job, workers: Workers, console: Console) -> None:
        self._job = job
        self._quick = job.quick
        self._workers = workers
        self._console = console
        self._outcomes: dict[Job, dict[str, Any] | Unavailable] = {}

    def measured(self, rows: Sequence[Row]) -> Iterator[Result]:
        """The results of rows, of fewer if it is interrupted: what took an hour is not lost."""
        try:
            for row in rows:
                yield self.measure(row)
        except KeyboardInterrupt:
            self._console.print("interrupted")

    def measure(self, row: Row) -> Result:
        """Everyone's numbers for one row; whoever cannot be measured is skipped with the reason."""
        work = self._work(row)
        repeats = row.quick_repeats if self._quick else row.repeats
        self._console.print(row.name(work))
        repetitions: dict[str, list[float]] = {}
        skipped = dict(row.not_quick) if self._quick else {}
        for who, reason in skipped.items():
            self._console.print(f"  {who}: skipped, {reason}")
        for who, function in {OURS: row.ours, **self._alternatives(row)}.items():
            try:
                outcome = self._run(replace(self._job, function=function, work=work, repeats=repeats))
                repetitions[who] = outcome[row.metric]
                self._console.print(f"  {who}: {number(median(repetitions[who]))} {row.unit}")
            except Unavailable as error:
                skipped[who] = str(error)
                self._console.print(f"  {who}: skipped, {error}")
        medians = {who: median(values) for who, values in repetitions.items()}
        return Result(
            key=row.key,
            name=row.name(work),
            unit=row.unit,
            higher_is_better=row.higher_is_better,
            ours=medians.pop(OURS, None),
            alternatives=medians,
            floor=None,
            skipped=skipped,
            work=asdict(work),
            repetitions=repetitions,
        )

    def with_floor(self, row: Row, result: Result, floor: Floor) -> Result:
        """The result with its row's bound."""
        return result if row.floor is None else replace(result, floor=row.floor(floor, self._work(row)))

    def _alternatives(self, row: Row) -> dict[str, str]:
        if not self._quick:
            return dict(row.alternatives)
        kept = {who: each for who, each in row.alternatives.items() if who not in row.not_quick}
        return {QUICK_NAMES.get(who, who): each for who, each in kept.items()}

    def _work(self, row: Row) -> Work:
        return row.quick if self._quick else row.work

    def _run(self, job: Job) -> dict[str, Any]:
        """Two rows about one measurement (its speed, its memory) make it once."""
        if job not in self._outcomes:
            try:
                timeout = QUICK_TIMEOUT_SECONDS if self._quick else TIMEOUT_SECONDS
                self._outcomes[job] = self._workers.run(job, timeout)
            except Unavailable as error:
                self._outcomes[job] = error
        outcome = self._outcomes[job]
        if isinstance(outcome, Unavailable):
            raise outcome
        return outcome


def _environments() -> dict[str, Any]:
    """What is in each, or why it is not used."""
    found: dict[str, Any] = {}
    for name, environment in ENVIRONMENTS.items():
        try:
            environment.python()
            found[name] = environment.versions()
        except Unavailable as error:
            found[name] = str(error)
    return found


@contextmanager
def _shared_server(given: argparse.Namespace) -> Iterator[str]:
    """With --quick one server for most rows, idle while others are measured; else each row starts its own."""
    with ExitStack() as stack:
        url = ""
        if given.quick:
            scratch = Path(stack.enter_context(TemporaryDirectory()))
            # If it does not start, every row tries for itself and says why.
            with suppress(ServerDidNotStart):
                server = running_server([given.model], scratch / "data", scratch / "server.log")
                url = stack.enter_context(server)
        yield url


def _write(
    given: argparse.Namespace,
    context: dict[str, Any],
    results: Sequence[Result],
    console: Console,
    *,
    complete: bool,
) -> None:
    """`DATE-KIND[-quick].json` and `.png`, and a copy as `latest`, unless rows are missing (`-only`)."""
    given.output.mkdir(parents=True, exist_ok=True)
    name = f"{context['date'][:10]}-{machine.kind(context)}"
    name += "-quick" if given.quick else ""
    name += "" if complete else "-only"
    path = given.output / f"{name}.json"
    write_json(path, context, results)
    hardware = context["hardware"]
    caption = f"{given.model}, {context['dtype']}, {hardware['cores']} cores of {hardware['cpu']}"
    try:
        draw(results, caption, path.with_suffix(".png"))
    except ModuleNotFoundError as error:
        console.print(f"no figure: the package {error.name} is not installed")
    if complete:
        shutil.copyfile(path, given.output / "latest.json")
    console.print(f"written to {path}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: 5 to 12 minutes on two cores")
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="folder for the results [benchmarks/results]"
    )
    parser.add_argument("--model", default=MODEL, help=f"hub id or folder [{MODEL}]")
    parser.add_argument(
        "--only",
        action="append",
        metavar="ROW",
        choices=[row.key for row in ROWS],
        help="a row; may be repeated",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
