"""Measurements in processes of their own, so that they share neither memory nor threads with the next.

python -m benchmarks.measure      called by `Worker`; each line of input is a job and the file for its result
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.work import Job, Unavailable, Work

_ROOT = Path(__file__).parent.parent
_END_SECONDS = 30.0
_POLL_SECONDS = 0.02


class Worker:
    """A process that makes one measurement after the other, and starts with the first.

    Modules may keep what is slow to start (a model, a server) from one job to the next.
    """

    def __init__(self, python: str = sys.executable, variables: Mapping[str, str] | None = None) -> None:
        self._python = python
        self._variables = dict(variables or {})
        self._process: subprocess.Popen[str] | None = None
        self._folder: TemporaryDirectory[str] | None = None
        self._made = 0

    def run(self, job: Job, timeout_seconds: float) -> dict[str, Any]:
        """What the job's function returns: lists of numbers by metric, one number a repetition.

        Raises:
            Unavailable: a package or memory is missing, or it failed; the message says what happened.
        """
        try:
            process, folder = self._started()
        except OSError as error:
            self.close()
            raise Unavailable(f"its interpreter does not start: {error}") from None
        process.send_signal(signal.SIGCONT)
        self._made += 1
        result, log = folder / f"result-{self._made}.json", folder / "log"
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"job": asdict(job), "result": str(result)}) + "\n")
            process.stdin.flush()
            _wait(process, result, timeout_seconds)
            outcome = json.loads(result.read_text())
        except TimeoutError:
            self._interrupt()
            raise Unavailable(f"took longer than {timeout_seconds:.0f} s") from None
        except KeyboardInterrupt:
            self._interrupt()
            raise
        except OSError:
            status, last = process.wait(), _last_line(log)
            self.close()
            if status == -signal.SIGKILL:
                raise Unavailable("its process was killed, most likely for want of memory") from None
            raise Unavailable(f"failed: {last}") from None
        # An engine at rest still looks around for work: beside it scoring fell from 1,987 to 1,562 tok/s.
        process.send_signal(signal.SIGSTOP)
        if "unavailable" in outcome:
            raise Unavailable(outcome["unavailable"])
        return outcome

    def _interrupt(self) -> None:
        if self._process is not None:  # not SIGINT, which what was started in the background ignores
            self._process.send_signal(signal.SIGTERM)
        self.close()

    def close(self) -> None:
        """End the process; what it started ends with it."""
        process, folder = self._process, self._folder
        self._process = self._folder = None
        if process is not None:
            _end(process)
        if folder is not None:
            folder.cleanup()

    def _started(self) -> tuple[subprocess.Popen[str], Path]:
        if self._process is None or self._folder is None:
            self._folder = TemporaryDirectory()
            folder = Path(self._folder.name)
            path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
            environment = {**os.environ, "PYTHONPATH": path, **self._variables}
            with (folder / "log").open("w") as output:
                self._process = subprocess.Popen(
                    [self._python, "-m", "benchmarks.measure"],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    text=True,
                )
        return self._process, Path(self._folder.name)


def run(job: Job, timeout_seconds: float) -> dict[str, Any]:
    """One job in a process that ends with it, in this environment. Raises what `Worker.run` does."""
    worker = Worker()
    try:
        return worker.run(job, timeout_seconds)
    finally:
        worker.close()


def _wait(process: subprocess.Popen[str], result: Path, timeout_seconds: float) -> None:
    """Until the result is there.

    Raises:
        TimeoutError: it took too long.
        FileNotFoundError: the process ended without it.
    """
    deadline = time.monotonic() + timeout_seconds
    while not result.exists():
        if process.poll() is not None and not result.exists():
            raise FileNotFoundError(result)
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(_POLL_SECONDS)


def _end(process: subprocess.Popen[str]) -> None:
    """The end of its input ends it, once it is not at work."""
    process.send_signal(signal.SIGCONT)
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it ended without a word"


def main() -> None:
    """Make the measurements that are asked for, until there is no more input."""
    # However it is ended, what it started ends with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for line in sys.stdin:
        given = json.loads(line)
        outcome = _outcome(Job(**{**given["job"], "work": Work(**given["job"]["work"])}))
        # Whole or not at all: the other side takes it as soon as it is there.
        part = Path(f"{given['result']}.part")
        part.write_text(json.dumps(outcome))
        part.rename(given["result"])


def _outcome(job: Job) -> dict[str, Any]:
    module, name = job.function.split(":")
    try:
        return getattr(import_module(module), name)(job)
    except ModuleNotFoundError as error:
        return {"unavailable": f"the package {error.name} is not installed"}
    except Unavailable as error:
        return {"unavailable": str(error)}
    except Exception as error:  # noqa: BLE001 - the next job may well succeed
        traceback.print_exc()
        message = str(error).partition("\n")[0]
        return {"unavailable": f"failed: {type(error).__name__}: {message}"}


if __name__ == "__main__":
    main()
