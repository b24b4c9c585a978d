"""Where the time of a row goes, by operation: `python -m benchmarks.profiling ROW ... [--full]`.

The server runs inside this process, so that one profiler sees what client, server and engine do. Training
goes to the engine directly: torch records no gradients of another thread. Each row becomes a table of
operations by their own time. What they leave of the clock passes between operations: in Python, in the
profiler itself, which costs microseconds an operation, and in waiting. The rows `import` and `cold-start`
become tables of the packages that are imported (`import_profile`).
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks import machine, work
from benchmarks.__main__ import MODEL, RESULTS
from benchmarks.import_profile import CLIENT, SERVER, profile_imports
from benchmarks.profile_table import Part, Profile
from benchmarks.rows import ROWS, Row
from benchmarks.work import Job
from tinkerlite import ServiceClient

_ONE_KIND = re.compile("(sample|score|train)(-(lora|one|mixed|turns|shared))?|request|import|cold-start")
PROFILED = [row for row in ROWS if _ONE_KIND.fullmatch(row.key)]
"""Rows that time one kind of work. In a step of RL or OPD torch would see no part at all: see above."""


def profile_row(row: Row, job: Job) -> Profile:
    """One repetition of the work of a row of `PROFILED`, after its warm-up."""
    if row.key == "import":
        return profile_imports(CLIENT)
    if row.key == "cold-start":
        return profile_imports(SERVER, job.model)
    module, _, function = row.ours.partition(":")
    trains = function.startswith("train")
    found: list[Profile] = []
    reset = work.measured_in.set(lambda: _profiled(found, all_threads=not trains))
    try:
        if trains:
            _train(job)
        else:
            run: Callable[[Job], object] = getattr(import_module(module), function)
            run(job)
    finally:
        work.measured_in.reset(reset)
    [profile] = found
    return profile


def _train(job: Job) -> None:
    """A row's update, by the engine in this thread."""
    from tinkerlite.types import AdamParams
    from tinkerlite_server.engine.catalog import build_catalog
    from tinkerlite_server.engine.local_engine import LocalEngine
    from tinkerlite_server.engine.protocols import AdapterConfig, EngineLimits, Example, TrainBatch

    limits = EngineLimits()
    engine = LocalEngine(build_catalog([job.model], limits), limits)
    engine.create_run("run", job.model, AdapterConfig(rank=job.work.rank, alpha=32.0, seed=0))

    def once(repetition: int, size: work.Work = job.work) -> None:
        drawn = [ids for group in size.draw(repetition, job.vocab_size) for ids in group]
        examples = [
            Example(each.tokens, each.targets, {"logprobs": each.logprobs, "advantages": each.advantages})
            for each in (work.policy(ids, size.prompt) for ids in drawn)
        ]
        batch = TrainBatch(model_id="run", examples=examples, loss_fn="importance_sampling", loss_config={})
        [output] = engine.forward_backward([batch])
        if isinstance(output, Exception):
            raise output
        engine.optim_step("run", AdamParams(learning_rate=1e-4))

    once(0, job.warm_up)
    work.timed(once, job.repeats)


@contextmanager
def _profiled(found: list[Profile], *, all_threads: bool) -> Generator[None, None, None]:
    """Adds the profile of what happens inside."""
    from torch._C._profiler import _ExperimentalConfig
    from torch.profiler import ProfilerActivity, profile

    config: Any = _ExperimentalConfig(profile_all_threads=all_threads)
    with profile(activities=[ProfilerActivity.CPU], experimental_config=config) as profiler:
        started = perf_counter()
        yield
        seconds = perf_counter() - started
    averages: list[Any] = list(profiler.key_averages())
    operations = [
        Part(name=each.key, calls=each.count, seconds=each.self_cpu_time_total / 1e6)
        for each in averages
        if each.self_cpu_time_total > 0
    ]
    operations.sort(key=lambda each: -each.seconds)
    found.append(Profile(kind="operation", seconds=seconds, parts=tuple(operations)))


def main(argv: Sequence[str] | None = None) -> int:
    """Profile the rows that the command line names, and write their tables; returns an exit status."""
    rows = {row.key: row for row in PROFILED}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiling", description=__doc__)
    parser.add_argument("rows", nargs="+", choices=sorted(rows), metavar="ROW", help=", ".join(rows))
    parser.add_argument("--model", default=MODEL, help=f"hub id or folder [{MODEL}]")
    parser.add_argument(
        "--full", action="store_true", help="the sizes of the whole benchmark, not of --quick"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder to write to")
    given = parser.parse_args(argv)
    os.environ["TINKERLITE_DEVICE"] = "cpu"  # whose operations the profiler times
    url = f"local://{given.model}"
    with ServiceClient(base_url=url) as service:
        [model] = service.get_server_capabilities().supported_models
        described = machine.describe(model.dtype or "", machine.cores())
        command = f"python -m benchmarks.profiling {' '.join(sys.argv[1:] if argv is None else argv)}"
        hardware, versions = described["hardware"], described["versions"]
        made = [
            f"{given.model}, {model.dtype}, {hardware['cores']} cores of {hardware['cpu']}",
            f"torch {versions['torch']}, commit {described['commit']}: `{command}`",
        ]
        parts = [
            "# Where the time goes",
            ", ".join(made),
        ]
        for key in given.rows:
            size = rows[key].work if given.full else rows[key].quick
            job = Job(
                function=rows[key].ours,
                model=given.model,
                work=size,
                vocab_size=model.vocab_size or 0,
                base_url=url,
            )
            parts.append(f"## {rows[key].name(size)}\n\n{profile_row(rows[key], job).table()}")
    text = "\n\n".join(parts) + "\n"
    print(text)
    given.output.mkdir(parents=True, exist_ok=True)
    path = given.output / f"{datetime.now(UTC):%Y-%m-%d}-{machine.kind(described)}-profile.md"
    path.write_text(text, encoding="utf-8")
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
