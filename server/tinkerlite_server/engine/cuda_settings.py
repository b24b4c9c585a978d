"""What a CUDA device needs to be told: which kernels may be taken, and how much to work on at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from tinkerlite_server.engine.catalog import resolve_device
from tinkerlite_server.engine.protocols import EngineLimits


def settle_kernels() -> None:
    """Leave out kernels that are wrong or slow here. The settings are the process's.

    - cuDNN's attention, torch's first choice on sm 9.x and 10.x, makes a plan for every shape, and shapes
      change with every token; on sm 10.x it has decoded wrong tokens (pytorch/pytorch#193893).
    - TF32 keeps ten bits of a factor; the environment may have turned it on.
    - Sums of half-precision products in half precision depend on how many rows a pass has, so that sampler
      and trainer would differ.
    """
    settings: Any = torch.backends.cuda
    settings.enable_cudnn_sdp(False)
    settings.matmul.allow_tf32 = False
    settings.matmul.allow_bf16_reduced_precision_reduction = False
    settings.matmul.allow_fp16_reduced_precision_reduction = False


def sized_for_device(limits: EngineLimits) -> EngineLimits:
    """The limits with sizes that suit their device; those of a processor are the defaults.

    Reckoned, not measured: a pass of 2,048 tokens keeps some 10 GB of activations of a model of 8B.
    """
    device = resolve_device(limits.device)
    if device.type != "cuda":
        return limits
    memory = torch.cuda.get_device_properties(device).total_memory
    return replace(
        limits,
        max_pass_tokens=2048,
        max_score_tokens=8192,
        head_chunk=1024,
        max_cache_bytes=memory // 5,
        max_models_bytes=memory // 2,
    )
