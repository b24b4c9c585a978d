"""What a measurement has to say about the machine it was made on."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path


def hardware() -> str:
    """Processor and core count in words, for example "2 cores of Intel(R) Xeon(R) Platinum 8259CL"."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} {'core' if cores == 1 else 'cores'} of {_processor()}"


def peak_rss_mib() -> float:
    """Peak resident memory of this process and of its largest finished child together, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return (own + child) / unit


def commit() -> str | None:
    """The commit of this project that runs; "+" says that files differ from it. None outside a checkout."""
    folder = Path(__file__).parent
    try:
        head = _git("rev-parse", "HEAD", cwd=folder)
        changed = _git("status", "--porcelain", cwd=folder)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def _git(*words: str, cwd: Path) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True, cwd=cwd).stdout.strip()


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
