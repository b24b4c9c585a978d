"""Functions that the tests of measuring measure, in processes of their own."""

from __future__ import annotations

import atexit
import os
import signal
import time
from pathlib import Path

from benchmarks.work import Job, Unavailable

_jobs_here = 0


def jobs_here(job: Job) -> dict[str, list[float]]:
    """How many jobs this process has had, this one among them."""
    global _jobs_here
    _jobs_here += 1
    return {"tokens_per_second": [float(_jobs_here)] * job.repeats}


jobs_here_too = jobs_here


def sampled_tokens(job: Job) -> dict[str, list[float]]:
    return {"tokens_per_second": [float(job.work.sampled_tokens)]}


def is_unavailable(job: Job) -> dict[str, list[float]]:
    raise Unavailable("there is no memory for it")


def lacks_a_package(job: Job) -> dict[str, list[float]]:
    __import__("no_such_package")
    return {}


def fails(job: Job) -> dict[str, list[float]]:
    raise ValueError("7 is too many\nand more lines")


def dies(job: Job) -> dict[str, list[float]]:
    print("the last words", flush=True)
    os._exit(3)


def is_killed(job: Job) -> dict[str, list[float]]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def takes_forever(job: Job) -> dict[str, list[float]]:
    """Says at its end, in the file that the job names, that it ended in order."""
    atexit.register(lambda: Path(job.folder).write_text("ended in order"))
    while True:
        time.sleep(0.05)
