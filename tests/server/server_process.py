"""The server as a process of its own, for tests of the command and of real HTTP."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def server_process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process and its URL, once it says that it is ready."""
    command = [sys.executable, "-c", "import sys; from tinkerlite_server.serve import main; sys.exit(main())"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    assert running.stdout is not None
    said = ""
    try:
        for line in running.stdout:
            said += line
            if "Ctrl-C" in line:
                break
        match = re.search(r"ready at (http://\S+)", said)
        assert match, said
        yield running, match[1]
    finally:
        running.kill()
        running.wait()
        running.stdout.close()
