"""Where each module of measurements runs: in which environment, and whether its process lasts.

What starts slowly (an engine, a server) is started once for all its rows, by a process that stays. While
others are measured it waits for input.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from benchmarks.environments import SKYRL, TCMALLOC, TRL, VLLM, Environment
from benchmarks.measure import Worker
from benchmarks.work import Job


def _vllm_variables() -> Mapping[str, str]:
    """What vLLM's documentation recommends on a CPU, and no look at the network.

    It sets OpenMP's variables (VLLM_CPU_OMP_THREADS_BIND) for worker processes alone; this is one process,
    which stands still while others are measured. So they are set here, as vLLM 0.32 would.
    """
    libraries = (VLLM.library(TCMALLOC), VLLM.library("libiomp5.so"))
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    bound = {
        "OMP_NUM_THREADS": str(len(allowed)),
        "KMP_AFFINITY": f"granularity=fine,explicit,proclist=[{','.join(map(str, allowed))}]",
        "KMP_BLOCKTIME": "5",
        "KMP_TPAUSE": "0",
    }
    return {
        "LD_PRELOAD": ":".join(str(library) for library in libraries if library),
        **(bound if allowed else {}),
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def _nothing() -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Home:
    """How the processes of a module are started."""

    environment: Environment | None = None
    """None: the one that this runs in."""
    starts: Environment | None = None
    """What the module starts processes in, if not in its own."""
    lasting: bool = False
    """Whether one process does all its jobs; else every job has its own."""
    lasting_if_quick: bool = False
    """The same in quick runs, where starting would take longer than measuring."""
    alone: tuple[str, ...] = ()
    """Functions that always have a process of their own, whose memory they measure."""
    variables: Callable[[], Mapping[str, str]] = _nothing
    """Environment variables, looked up when it starts."""

    def worker(self) -> Worker:
        """A process for jobs.

        Raises:
            Unavailable: an environment is missing.
        """
        if self.starts:
            self.starts.python()
        python = self.environment.python() if self.environment else sys.executable
        return Worker(python, self.variables())


_ALTERNATIVES = "benchmarks.alternatives"
HOMES: Mapping[str, Home] = {
    f"{_ALTERNATIVES}.vllm_cpu": Home(environment=VLLM, lasting=True, variables=_vllm_variables),
    f"{_ALTERNATIVES}.skyrl_server": Home(starts=SKYRL, lasting=True),
    f"{_ALTERNATIVES}.trl_trainers": Home(environment=TRL, lasting=True),
    f"{_ALTERNATIVES}.transformers_peft": Home(lasting_if_quick=True, alone=("train",)),
    "benchmarks.clients": Home(lasting=True),
}


class Workers:
    """Runs every job at its home. Lasting processes end with the block."""

    def __init__(self) -> None:
        self._lasting: dict[tuple[str, bool], Worker] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *reason: object) -> None:
        self._stack.close()

    def run(self, job: Job, timeout_seconds: float) -> dict[str, Any]:
        """See `Worker.run`."""
        module, _, function = job.function.partition(":")
        home = HOMES.get(module, Home())
        lasting = home.lasting or (home.lasting_if_quick and job.quick)
        if not lasting or function in home.alone:
            with ExitStack() as stack:
                worker = home.worker()
                stack.callback(worker.close)
                return worker.run(job, timeout_seconds)
        # An engine that takes adapters is another engine, and slower without one.
        key = (module, job.work.rank > 0 and home.environment is not None)
        if key not in self._lasting:
            self._lasting[key] = home.worker()
            self._stack.callback(self._lasting[key].close)
        return self._lasting[key].run(job, timeout_seconds)
