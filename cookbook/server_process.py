"""A server of one's own: started as a child process on a free loopback port, stopped with the block.

Where this process is killed and no block ends, the server stops as well: it would keep gigabytes.

Knows the command line of the server and its health route, nothing else of it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

START_TIMEOUT_SECONDS = 300.0
"""The first start converts the model's weights, which takes most of a minute on two cores."""
STOP_TIMEOUT_SECONDS = 20.0


class ServerDidNotStart(RuntimeError):
    """The server process ended, or never answered; the message holds the end of its log."""


@contextmanager
def running_server(models: Sequence[str], data_dir: Path, log: Path) -> Generator[str, None, None]:
    """Yields the base URL of a server of these models; stops it when the block ends, however it ends.

    Raises:
        ServerDidNotStart: see the class.
    """
    port = free_port()
    command = [sys.executable, "-m", "tinkerlite.cli", "serve", "--port", str(port)]
    command += ["--stop-with-parent", str(os.getpid()), "--data-dir", str(data_dir)]
    command += [word for model in models for word in ("--model", model)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        # In a session of its own, so that Ctrl-C reaches the client alone, and the block ends in order.
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_healthy(process, url, log)
            yield url
        finally:
            _stop(process)


def free_port() -> int:
    """A loopback port that nothing listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerDidNotStart(
                f"the server ended with status {process.returncode}. The end of {log}:\n{_tail(log)}"
            )
        if _is_healthy(url):
            return
        time.sleep(0.2)
    raise ServerDidNotStart(
        f"the server did not answer within {START_TIMEOUT_SECONDS:.0f} s. The end of {log}:\n{_tail(log)}"
    )


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/api/v1/healthz", timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
