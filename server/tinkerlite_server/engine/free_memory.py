"""How much memory a device has free, as far as it says."""

from __future__ import annotations

import re
from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")


def free_bytes(device: torch.device) -> int | None:
    """Bytes that could be allocated now; None where nothing tells (a CPU on another system than Linux)."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch holds and nobody uses is free as well.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu" or not _MEMINFO.is_file():
        return None
    available = re.search(r"MemAvailable:\s+(\d+) kB", _MEMINFO.read_text())
    return int(available[1]) * 1024 if available else None
