"""The unembedding: hidden rows to logits, in fp32 whatever the weights' dtype.

A logit of 20 rounded to bfloat16 is off by up to 0.06 nats, more than all layers before it
together. So products of half-precision numbers are summed in fp32, as the hardware does, and
stay in fp32.

Dimensions in names: R rows, E hidden size, V vocabulary, K rank of an adapter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from tinkerlite_server.engine.lora import Adapter
from tinkerlite_server.engine.products import packed, packed_linear

FEW_ROWS = 3
"""So few rows are multiplied faster as they are: what counts then is reading the matrix, not multiplying."""


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


@dataclass(frozen=True, eq=False)
class HeadFactors:
    """An adapter's factors at the unembedding, rounded to the weights' dtype."""

    a_KE: Tensor
    b_VK: Tensor
    scale: float
    ready_a_KE: Tensor
    """As the product takes them: on a CPU, the same numbers in fp32."""
    ready_b_VK: Tensor


class Unembedding:
    """The (vocabulary, hidden) matrix of a model, and its bias if it has one."""

    def __init__(self, head: Head) -> None:
        self.weight = head.weight
        self.bias = None if head.bias is None else head.bias.float()
        self._dtype = head.weight.dtype
        self._by_cpu = self.weight.device.type == "cpu" and self._dtype == torch.bfloat16
        self._ready = self._made_ready(self.weight.detach()) if self._by_cpu else self.weight
        # Weights that are trained change with every step, and are multiplied a few times in between.
        frozen_fp32 = self._dtype == torch.float32 and not self.weight.requires_grad
        self._packed = packed(self.weight) if frozen_fp32 else None
        self._frozen: WeakKeyDictionary[Adapter, HeadFactors | None] = WeakKeyDictionary()

    @property
    def extra_bytes(self) -> int:
        """Memory beside the model's own parameters."""
        copies = 0 if self._ready is self.weight else self._ready.numel() * self._ready.element_size()
        return copies if self._packed is None else copies + 4 * self.weight.numel()

    def room(self, rows: int) -> Tensor:
        """A place for the logits of this many rows, to be used again.

        Fresh memory of this size costs as much as the product that fills it.
        """
        return torch.empty(rows, self.weight.shape[0], dtype=torch.float32, device=self.weight.device)

    def __call__(
        self, hidden_RE: Tensor, factors: HeadFactors | None = None, room: Tensor | None = None
    ) -> Tensor:
        """fp32 logits (R, V), the adapter's included.

        Args:
            room: where they may be put, in its first R rows.
        """
        if self._packed is not None:
            logits_RV = packed_linear(hidden_RE.to(self._dtype), self._packed)
        else:
            out = None if room is None else room[: len(hidden_RE)]
            logits_RV = self._product(hidden_RE, self._ready, out)
        if self.bias is not None:
            logits_RV += self.bias
        if factors is not None:
            self.add_delta(logits_RV, self.low(hidden_RE, factors), factors)
        return logits_RV

    def low(self, hidden_RE: Tensor, factors: HeadFactors) -> Tensor:
        """The adapter's scaled low-rank activations (R, K), in fp32."""
        return self._product(hidden_RE, factors.ready_a_KE).mul_(factors.scale)

    def add_delta(self, logits_RV: Tensor, low_RK: Tensor, factors: HeadFactors) -> None:
        """Add what an adapter changes, in place."""
        if self._by_cpu:
            with multiplying_in_bfloat16():
                logits_RV.addmm_(low_RK.to(self._dtype).float(), factors.ready_b_VK.T)
        else:
            logits_RV += self._product(low_RK, factors.ready_b_VK)

    def weight_gradient(self, grad_RV: Tensor, hidden_RE: Tensor) -> Tensor:
        """dL/dW (V, E) in fp32, from dL/dlogits of some rows and what these were made of."""
        return self._product(grad_RV.T, self._made_ready(hidden_RE.T.to(self._dtype)))

    def factors(self, adapter: Adapter) -> HeadFactors | None:
        """An adapter's factors here; None if it has none. Those of a frozen adapter are made once."""
        if adapter.trainable:
            return self._factors(adapter)
        if adapter not in self._frozen:
            self._frozen[adapter] = self._factors(adapter)
        return self._frozen[adapter]

    def forget_factors(self, kept: Adapter | None) -> None:
        """See `Product.forget_factors`."""
        for adapter in [each for each in self._frozen if each is not kept]:
            del self._frozen[adapter]

    def _factors(self, adapter: Adapter) -> HeadFactors | None:
        pair = adapter.pairs.get("lm_head")
        if pair is None:
            return None
        a, b = pair.a.detach().to(self._dtype), pair.b.detach().to(self._dtype)
        return HeadFactors(a, b, adapter.scale, self._made_ready(a), self._made_ready(b))

    def _made_ready(self, weight: Tensor) -> Tensor:
        return weight.float() if self._by_cpu else weight

    def _product(self, x: Tensor, ready: Tensor, out: Tensor | None = None) -> Tensor:
        """x W^T in fp32, of numbers that have the weights' precision."""
        x = x.to(self._dtype)
        if self._by_cpu:
            # torch has no product of bfloat16 matrices here that yields fp32, but one of fp32 matrices that
            # multiplies their first eight bits: nearly as fast, and these numbers have no more.
            with nullcontext() if len(x) <= FEW_ROWS else multiplying_in_bfloat16():
                return torch.mm(x.float(), ready.T, out=out)
        if x.is_cuda and x.dtype != torch.float32:
            return torch.mm(x, ready.T, out_dtype=torch.float32, out=out)
        return torch.mm(x, ready.T, out=out) if x.dtype == torch.float32 else F.linear(x, ready).float()


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
