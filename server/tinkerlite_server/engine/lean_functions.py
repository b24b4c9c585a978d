"""What a decoder layer does between its products: norm, rotation, gated activation.

Each is the textbook formula with a backward pass that keeps its inputs and recomputes the rest:
the time of a layer on a CPU is how often its rows are read and written.

Dimensions in names: N rows, E hidden size, H heads, D head size, F = D / 2 frequencies, I inner size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension, in fp32, rounded to `dtype` last.

    Source: Zhang and Sennrich 2019, eq. 4 (arXiv:1910.07467).
    """
    if x.is_cuda:
        return torch_rms_norm(x, weight, epsilon, dtype)
    if torch.is_grad_enabled():
        return _RmsNorm.apply(x, weight, epsilon, dtype)  # type: ignore[no-untyped-call]
    return (x * _inverse_rms(x, epsilon)).mul_(weight).to(dtype)


def torch_rms_norm(x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """The same by torch: one kernel where there is one, slower on a processor."""
    return (F.rms_norm(x.float(), (x.shape[-1],), None, epsilon) * weight).to(dtype)


def rotate(x_NHD: Tensor, cos_N1F: Tensor, sin_N1F: Tensor, turned: int) -> Tensor:
    """Rotary positions: dimensions (f, f + F) of a head are turned by position * frequency f, in fp32.

    Args:
        cos_N1F: fp32, of the angles; `sin_N1F` likewise.
        turned: how many heads, the first ones, are turned; the others are copied.

    Source: Su et al. 2021 (arXiv:2104.09864), in the half-split layout of transformers.
    """
    if torch.is_grad_enabled():
        return _Rotate.apply(x_NHD, cos_N1F, sin_N1F, turned)  # type: ignore[no-untyped-call]
    return _rotated(x_NHD, cos_N1F, sin_N1F, turned)


def gated_silu(gate_up_N2I: Tensor) -> Tensor:
    """silu(gate) * up, (N, I).

    Source: Shazeer 2020 (arXiv:2002.05202).
    """
    if torch.is_grad_enabled():
        return _GatedSilu.apply(gate_up_N2I)  # type: ignore[no-untyped-call]
    gate, up = gate_up_N2I.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        x = x.float()
        scale = _inverse_rms(x, epsilon)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """d x = s (g - n mean(g n)) with n = s x, g = grad * weight."""
        x, weight, scale = ctx.saved_tensors
        grad = grads[0].float() * weight
        shared = torch.linalg.vecdot(grad, x)[..., None].mul_(scale**3).div_(-x.shape[-1])
        return grad.mul_(scale).addcmul_(x, shared), None, None, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NHD: Tensor, cos_N1F: Tensor, sin_N1F: Tensor, turned: int) -> Tensor:
        ctx.save_for_backward(cos_N1F, sin_N1F)
        ctx.turned = turned
        return _rotated(x_NHD, cos_N1F, sin_N1F, turned)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos_N1F, sin_N1F = ctx.saved_tensors
        return _rotated(grads[0], cos_N1F, -sin_N1F, ctx.turned), None, None, None


class _GatedSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_N2I: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_N2I)
        gate, up = gate_up_N2I.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor]:
        (gate_up_N2I,) = ctx.saved_tensors
        gate, up = gate_up_N2I.chunk(2, dim=-1)
        grad_N2I = torch.empty_like(gate_up_N2I)
        grad_gate, grad_up = grad_N2I.chunk(2, dim=-1)
        torch.ops.aten.silu.out(gate, out=grad_up)
        grad_up.mul_(grads[0])
        torch.mul(grads[0], up, out=grad_gate)
        torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
        return (grad_N2I,)


def _inverse_rms(x: Tensor, epsilon: float) -> Tensor:
    """1 / sqrt(mean(x^2) + epsilon) of each row, fp32."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()


def _rotated(x_NHD: Tensor, cos_N1F: Tensor, sin_N1F: Tensor, turned: int) -> Tensor:
    rotated_NHD = x_NHD.to(torch.float32, copy=True)
    left_NHF, right_NHF = rotated_NHD[:, :turned].chunk(2, dim=-1)
    before_NHF = left_NHF.clone()
    left_NHF.mul_(cos_N1F).addcmul_(right_NHF, sin_N1F, value=-1)
    right_NHF.mul_(cos_N1F).addcmul_(before_NHF, sin_N1F)
    return rotated_NHD.to(x_NHD.dtype)
