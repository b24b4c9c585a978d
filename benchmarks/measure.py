"""One measurement in a process of its own, so that it shares neither memory nor threads with the next.

python -m benchmarks.measure JOB RESULT      called by `run`; JOB is JSON, RESULT the file to write
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.work import Job, Unavailable, Work

_END_SECONDS = 30.0


def run(job: Job, timeout_seconds: float) -> dict[str, Any]:
    """What the job's function returns: lists of numbers by metric, one number a repetition.

    Raises:
        Unavailable: a package or memory is missing, or it failed; the message says what happened.
    """
    with TemporaryDirectory() as folder:
        result, log = Path(folder) / "result.json", Path(folder) / "log"
        command = [sys.executable, "-m", "benchmarks.measure", json.dumps(asdict(job)), str(result)]
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
            try:
                status = process.wait(timeout_seconds)
            except subprocess.TimeoutExpired:
                raise Unavailable(f"took longer than {timeout_seconds:.0f} s") from None
            finally:
                _end(process)
        if status == -signal.SIGKILL:
            raise Unavailable("its process was killed, most likely for want of memory")
        if not result.exists():
            raise Unavailable(f"failed: {_last_line(log)}")
        outcome = json.loads(result.read_text())
    if "unavailable" in outcome:
        raise Unavailable(outcome["unavailable"])
    return outcome


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt it if it still runs: it then stops the server that it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it ended without a word"


def main(argv: Sequence[str]) -> None:
    """Run the job in this process and write what it returns."""
    given = json.loads(argv[0])
    job = Job(**{**given, "work": Work(**given["work"])})
    module, name = job.function.split(":")
    try:
        outcome = getattr(import_module(module), name)(job)
    except ModuleNotFoundError as error:
        outcome = {"unavailable": f"the package {error.name} is not installed"}
    except Unavailable as error:
        outcome = {"unavailable": str(error)}
    Path(argv[1]).write_text(json.dumps(outcome))


if __name__ == "__main__":
    main(sys.argv[1:])
