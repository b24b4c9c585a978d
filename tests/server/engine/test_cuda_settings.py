"""Settings for CUDA, as far as they can be looked at without one. `tests/gpu` runs under them."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tinkerlite_server.engine import cuda_settings
from tinkerlite_server.engine.cuda_settings import settle_kernels, sized_for_device
from tinkerlite_server.engine.protocols import EngineLimits

MATMUL = ("allow_tf32", "allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")


@pytest.fixture
def backend() -> Iterator[Any]:
    backend: Any = torch.backends.cuda
    before = [getattr(backend.matmul, name) for name in MATMUL]
    cudnn = backend.cudnn_sdp_enabled()
    yield backend
    backend.enable_cudnn_sdp(cudnn)
    for name, value in zip(MATMUL, before, strict=True):
        setattr(backend.matmul, name, value)


def test_products_are_summed_in_fp32_and_attention_is_not_cudnn_s(backend: Any):
    backend.matmul.allow_tf32 = True  # as NVIDIA's containers have it
    settle_kernels()
    assert not backend.cudnn_sdp_enabled()
    assert not any(getattr(backend.matmul, name) for name in MATMUL)


def test_a_processor_has_the_default_sizes():
    limits = EngineLimits(device="cpu", max_full_bytes=3)
    assert sized_for_device(limits) == limits


def test_the_sizes_of_a_gpu_go_by_its_memory_and_leave_the_rest_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cuda_settings, "resolve_device", torch.device)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * 2**30)
    )
    limits = sized_for_device(EngineLimits(device="cuda", dtype="float32", max_full_bytes=3))
    assert (limits.max_models_bytes, limits.max_cache_bytes) == (40 * 2**30, 16 * 2**30)
    assert limits.max_pass_tokens > EngineLimits().max_pass_tokens
    assert (limits.device, limits.dtype, limits.max_full_bytes) == ("cuda", "float32", 3)
