"""What a result says about where it was made: hardware, versions, commit; and how busy it is."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cookbook.machine import commit

PACKAGES = ("tinkerlite", "tinkerlite-server", "torch", "transformers", "peft", "numpy", "tinker")
MATRIX_FLAGS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "bf16", "sve", "asimd")
"""Processor features that decide how fast matrices multiply, the strongest first."""


def describe(dtype: str, threads: int) -> dict[str, Any]:
    """Everything about the machine and the software that a number depends on."""
    info = _cpu_info()
    flags = (info.get("flags") or info.get("Features") or "").split()
    return {
        "hardware": {
            "cpu": info.get("model name") or platform.processor() or platform.machine(),
            "cores": cores(),
            "threads": threads,
            "flags": [flag for flag in MATRIX_FLAGS if flag in flags],
            "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": {"python": platform.python_version(), **_versions()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "dtype": dtype,
    }


def load() -> list[float]:
    """Processes at work over the last one, five and fifteen minutes."""
    return list(os.getloadavg())


def kind(described: dict[str, Any]) -> str:
    """The machine in a few characters, for file names: "2-cores-avx2"."""
    hardware = described["hardware"]
    strongest = hardware["flags"][0] if hardware["flags"] else platform.machine()
    return f"{hardware['cores']}-cores-{strongest.replace('_', '-')}"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_info() -> dict[str, str]:
    listing = Path("/proc/cpuinfo")
    if not listing.exists():
        return {}
    pairs = (line.split(":", 1) for line in listing.read_text().splitlines() if ":" in line)
    info: dict[str, str] = {}
    for name, value in pairs:
        info.setdefault(name.strip(), value.strip())
    return info


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
