"""The unembedding: hidden rows to logits, in fp32 whatever the weights' dtype.

A logit of 20 rounded to bfloat16 is off by up to 0.06 nats, more than all layers before it
together. So products of half-precision numbers are summed in fp32, as the hardware does, and
stay in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Head(Protocol):
    """An output layer: torch's linear layer, or its weights alone."""

    @property
    def weight(self) -> Tensor:
        """(vocabulary, hidden)."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """(vocabulary,)."""
        ...


class Unembedding:
    """The (vocabulary, hidden) matrix of a model, and its bias if it has one.

    Dimensions in names: R rows, E hidden size, V vocabulary, K rank of an adapter.
    """

    def __init__(self, head: Head) -> None:
        self.weight = head.weight
        self.bias = None if head.bias is None else head.bias.float()
        self._dtype = head.weight.dtype
        on_cpu = self.weight.device.type == "cpu"
        self._product = _product_on_cpu if on_cpu and self._dtype == torch.bfloat16 else _product
        self._ready = self.weight.detach().float() if self._product is _product_on_cpu else self.weight

    @property
    def extra_bytes(self) -> int:
        """Memory beside the model's own parameters."""
        return 0 if self._ready is self.weight else self._ready.numel() * self._ready.element_size()

    def __call__(self, hidden_RE: Tensor) -> Tensor:
        """fp32 logits (R, V)."""
        logits_RV = self._product(hidden_RE.to(self._dtype), self._ready)
        return logits_RV if self.bias is None else logits_RV + self.bias

    def delta(self, hidden_RE: Tensor, a_KE: Tensor, b_VK: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """What an adapter adds to the logits (R, V), and its scaled low-rank activations (R, K), in fp32."""
        low_RK = self._product(hidden_RE.to(self._dtype), a_KE.to(self._dtype)) * scale
        return self._product(low_RK.to(self._dtype), b_VK.to(self._dtype)), low_RK

    def weight_gradient(self, grad_RV: Tensor, hidden_RE: Tensor) -> Tensor:
        """dL/dW (V, E) in fp32, from dL/dlogits of some rows and what these were made of."""
        return self._product(grad_RV.T.to(self._dtype), hidden_RE.T.to(self._dtype))


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T in fp32."""
    if x.is_cuda and x.dtype != torch.float32:
        return torch.mm(x, weight.T, out_dtype=torch.float32)
    return F.linear(x, weight).float()


def _product_on_cpu(x: Tensor, weight: Tensor) -> Tensor:
    """The same for bfloat16 numbers on a CPU.

    torch has no product of bfloat16 matrices there that yields fp32, but one of fp32 matrices that
    multiplies their first eight bits: as fast, and these numbers have no more.
    """
    with multiplying_in_bfloat16():
        return F.linear(x.float(), weight.float())


@contextmanager
def multiplying_in_bfloat16() -> Iterator[None]:
    """Inside, large fp32 matrix products on the CPU round their factors to bfloat16.

    The setting is the process's. Only a model in bfloat16 uses this, for one product at a time.
    """
    setting: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # not in its stubs
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before
