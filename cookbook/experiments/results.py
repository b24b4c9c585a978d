"""Result files: one JSONL a seed and size, a header first, put in place only when the run is complete."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from cookbook.experiments.experiment import Experiment, Result, Size
from cookbook.machine import commit, hardware
from cookbook.metrics import MetricsFile, Row, read_metrics

HEADER = "header"
"""The run's name in the first row of a file, and `END` in its last."""
END = "end"


def result_file(folder: Path, size: Size, seed: int) -> Path:
    """Where the results of a seed are."""
    return folder / f"{size}-seed-{seed}.jsonl"


@contextmanager
def writing(
    experiment: Experiment[Any],
    size: Size,
    seed: int,
    folder: Path,
    dtypes: Sequence[str] = (),
    making: float = 0.0,
) -> Generator[MetricsFile, None, None]:
    """A metrics file with its header, which takes its place when the block ends well.

    A run that fails or is interrupted leaves its rows in NAME.part, and earlier results as they were.
    `dtypes` are those that the server multiplies in, as far as it says; `making` is how many seconds the
    base models took to make, once for all seeds of a command.
    """
    path = result_file(folder, size, seed)
    part = path.with_suffix(".part")
    started = time.monotonic()
    with MetricsFile(part) as metrics:
        metrics.write(
            {
                "run": HEADER,
                "experiment": experiment.number,
                "size": size,
                "command": f"python -m cookbook.experiments.{experiment.name} --size {size} --seeds {seed}",
                "hardware": hardware(),
                "python": platform.python_version(),
                "torch": _version("torch"),
                "commit": commit(),
                "dtype": ", ".join(dtypes) or None,
                "making_seconds": making,
                "setting": asdict(experiment.sizes[size]),
            }
        )
        yield metrics
        metrics.write({"run": END, "seconds": time.monotonic() - started})
    part.replace(path)


def load_results(experiment: Experiment[Any], size: Size, folder: Path | None = None) -> list[Result]:
    """All complete results of a size, by seed. A folder stands for the experiment's own."""
    own = folder or experiment.folder / "results"
    files = own.glob(f"{size}-seed-*.jsonl")
    return sorted((_load(file) for file in files), key=lambda result: result.seed)


def check_one_setting(results: Sequence[Result]) -> None:
    """Seeds are averaged only if they differ in nothing else; a field that only one of them has says nothing.

    Raises:
        ValueError: two results have different settings.
    """
    first: Row = results[0].header["setting"] if results else {}
    for other in results[1:]:
        setting: Row = other.header["setting"]
        if _changes(first, setting) and _changes(setting, first):
            raise ValueError(
                f"seeds {results[0].seed} and {other.seed} of {results[0].header['experiment']} were run "
                "with different settings; run one of them again"
            )


def changed_since(experiment: Experiment[Any], result: Result) -> list[str]:
    """Settings that are not what they were when this result was made: "learn.steps 80, now 60".

    Fields that have come since are left out: they meant nothing then.
    """
    now = json.loads(json.dumps(asdict(experiment.sizes[result.header["size"]])))
    return _changes(result.header["setting"], now)


def _changes(then: Row, now: Row, within: str = "") -> list[str]:
    found: list[str] = []
    for name, value in then.items():
        if isinstance(value, dict) and isinstance(now.get(name), dict):
            found += _changes(cast(Row, value), now[name], f"{within}{name}.")
        elif value != now.get(name):
            found.append(f"`{within}{name}` {value}, now {now.get(name)}")
    return found


def _load(file: Path) -> Result:
    header, *rows, end = read_metrics(file)
    if header["run"] != HEADER or end["run"] != END:
        sys.exit(
            f"{file} is not a complete result file: "
            f"it begins with {header['run']!r} and ends with {end['run']!r}"
        )
    seed = int(file.stem.rpartition("-")[2])
    return Result(seed=seed, header=header | {"seconds": end["seconds"]}, rows=rows)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # a server elsewhere has it
        return None
