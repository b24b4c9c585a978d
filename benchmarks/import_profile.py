"""Which packages a fresh interpreter imports, and how long each takes: Python's own `-X importtime`, summed.

Compiled modules are cached, as they are from the second start on.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from time import perf_counter

from benchmarks.profile_table import Part, Profile

CLIENT = "from tinkerlite import ServiceClient, TrainingClient, SamplingClient, types"
"""What the row `import` times."""
SERVER = """
import sys
from tinkerlite import ServiceClient, types
with ServiceClient(base_url=f"local://{sys.argv[1]}") as service:
    prompt = types.ModelInput.from_ints(list(range(8)))
    sampler = service.create_sampling_client(base_model=sys.argv[1])
    sampler.sample(prompt, num_samples=1, sampling_params=types.SamplingParams(max_tokens=1)).result()
"""
"""From nothing to the first token, server and client in one process: `cold-start` without uvicorn."""

_LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")


def profile_imports(code: str, *arguments: str) -> Profile:
    """The second of two runs of `code` in an interpreter of its own; packages by their first two names.

    What is no import, of the server, is mostly the model: reading, checking and packing its weights.

    Raises:
        RuntimeError: it ends in an error.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-X", "importtime", "-c", code, *arguments]
    subprocess.run(command, capture_output=True, env=environment)
    started = perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    seconds = perf_counter() - started
    if ended.returncode:
        said = "\n".join(line for line in ended.stderr.splitlines() if not line.startswith("import time:"))
        raise RuntimeError(f"{code.strip()!r} ended with {ended.returncode}: {said}")
    modules, spent = Counter[str](), Counter[str]()
    for microseconds, module in _LINE.findall(ended.stderr):
        package = ".".join(module.split(".")[:2])
        modules[package] += 1
        spent[package] += int(microseconds)
    parts = [Part(name=name, calls=modules[name], seconds=time / 1e6) for name, time in spent.most_common()]
    return Profile(kind="package", seconds=seconds, parts=tuple(parts))
