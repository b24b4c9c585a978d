"""Samplers over vLLM for tests: over vLLM itself where it is, else over a stand-in."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tinkerlite_server.engine.catalog import build_catalog
from tinkerlite_server.engine.model_pool import ModelPool
from tinkerlite_server.engine.protocols import EngineLimits
from tinkerlite_server.engine.sampler import LocalSampler
from tinkerlite_server.engine.vllm_process import VllmSettings
from tinkerlite_server.engine.vllm_sampler import VllmSampler
from tinkerlite_server.engine.vllm_start import start_vllm

STAND_IN = Path(__file__).parent / "vllm_stand_in"
ROOT = Path(__file__).parents[3]


def vllm_python() -> str:
    """The interpreter of an environment with vLLM."""
    interpreter = os.environ.get("TINKERLITE_VLLM_PYTHON", "")
    if not Path(interpreter).is_file():
        pytest.skip("TINKERLITE_VLLM_PYTHON names no interpreter with vLLM installed")
    return interpreter


@contextmanager
def stand_in_vllm(*faults: str) -> Iterator[VllmSettings]:
    """What runs the stand-in, with faults or without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (STAND_IN, ROOT, ROOT / "server"))))
        patch.setenv("STAND_IN_FAULTS", ", ".join(faults))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield VllmSettings(python=sys.executable)


@contextmanager
def vllm_sampler(
    folder: Path, where: AbstractContextManager[VllmSettings], **options: Any
) -> Iterator[tuple[VllmSampler, LocalSampler, ModelPool]]:
    """A sampler that has passed its examination, the PyTorch sampler within it, and their models.

    Args:
        where: what runs vLLM; only entered while it starts.
    """
    limits = EngineLimits(device="cpu", dtype="float32", max_cache_bytes=2**28)
    pool = ModelPool(build_catalog([str(folder)], limits), limits)
    local = LocalSampler(pool, limits)
    with where as settings:
        sampler = start_vllm(pool, local, limits, replace(settings, options=options))
    try:
        yield sampler, local, pool
    finally:
        sampler.close()
