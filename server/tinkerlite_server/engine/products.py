"""Products: the matrices of a layer that read the same input, as one, with every adapter's delta.

    y = x W^T + s (x A^T) B^T      W = [W_q; W_k; W_v] and so on, A likewise, B block by block

One product of a few wide matrices costs less than several of narrow ones, most of all when
rows are few. The frozen W gets no gradient; x, A and B do. Slow twin: lora.py's `LoraLinear`.

Dimensions in names: N rows, I inputs, O outputs, K the ranks of an adapter's factors together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinkerlite_server.engine.lora import Adapter, AdapterRows, LoraPair


@dataclass(frozen=True, eq=False)
class Factors:
    """An adapter's factors at a product, in the weights' dtype, its scale folded into B."""

    a_KI: Tensor
    b_KO: Tensor
    """B transposed: each target's block stands at its own ranks and outputs, zeros elsewhere."""


class Product:
    """Frozen linear layers with one input.

    Args:
        linears: by module path. Their weights become views of the joint one, so nothing is held twice.
    """

    def __init__(self, linears: Mapping[str, nn.Linear]) -> None:
        self.weight_OI = torch.cat([linear.weight.detach() for linear in linears.values()])
        self._outputs: dict[str, slice] = {}
        start = 0
        for path, linear in linears.items():
            end = start + linear.out_features
            self._outputs[path] = slice(start, end)
            linear.weight.data = self.weight_OI[start:end]
            start = end
        self._bias_O = _joint_bias(list(linears.values()))
        self._packed = packed(self.weight_OI)
        # Factors of adapters that no longer change.
        self._fused: WeakKeyDictionary[Adapter, Factors | None] = WeakKeyDictionary()

    @property
    def extra_bytes(self) -> int:
        """Memory beside the joint weight."""
        return 0 if self._packed is None else self.weight_OI.numel() * self.weight_OI.element_size()

    def __call__(self, x_NI: Tensor, adapters: Sequence[AdapterRows]) -> Tensor:
        """(N, O) in the weights' dtype, which x has too. Differentiable in x and trainable factors."""
        if not torch.is_grad_enabled():
            y_NO = self.frozen(x_NI)
            for assigned in adapters:
                factors = self._frozen_factors(assigned.adapter)
                if factors is not None:
                    _add_delta(y_NO, x_NI, factors, assigned.rows)
            return y_NO
        leaves = [
            tensor
            for each in adapters
            for _, pair in self._pairs(each.adapter)
            for tensor in (pair.a, pair.b)
        ]
        return _Differentiable.apply(x_NI, self, adapters, *leaves)  # type: ignore[no-untyped-call]

    def frozen(self, x_NI: Tensor) -> Tensor:
        """x W^T and the bias, without adapters or gradients."""
        if self._packed is not None:
            return packed_linear(x_NI, self._packed, self._bias_O)
        return F.linear(x_NI, self.weight_OI, self._bias_O)

    def factors(self, adapter: Adapter) -> Factors | None:
        """The adapter's factors here; None if it has none."""
        pairs = list(self._pairs(adapter))
        if not pairs:
            return None
        like = self.weight_OI
        a_KI = torch.cat([pair.a.to(like.dtype) for _, pair in pairs])
        b_KO = like.new_zeros(a_KI.shape[0], like.shape[0])
        start = 0
        for outputs, pair in pairs:
            end = start + pair.a.shape[0]
            # Rounded first, as a snapshot's are: trainer and sampler have the same numbers.
            b_KO[start:end, outputs] = (pair.b.to(like.dtype) * adapter.scale).T
            start = end
        return Factors(a_KI, b_KO)

    def forget_factors(self, kept: Adapter | None) -> None:
        """Let go of what is kept of adapters that no longer change, but for one: they can be made again."""
        for adapter in [each for each in self._fused if each is not kept]:
            del self._fused[adapter]

    def _pairs(self, adapter: Adapter) -> Iterator[tuple[slice, LoraPair]]:
        for path, outputs in self._outputs.items():
            pair = adapter.pairs.get(path)
            if pair is not None:
                yield outputs, pair

    def _frozen_factors(self, adapter: Adapter) -> Factors | None:
        if adapter.trainable:
            return self.factors(adapter)
        if adapter not in self._fused:
            self._fused[adapter] = self.factors(adapter)
        return self._fused[adapter]


class _Differentiable(torch.autograd.Function):
    """The product with gradients for its input and for the factors that it is given last."""

    @staticmethod
    def forward(
        ctx: Any, x_NI: Tensor, product: Product, adapters: Sequence[AdapterRows], *leaves: Tensor
    ) -> Tensor:
        y_NO = product.frozen(x_NI)
        ctx.product, ctx.adapters, ctx.parts = product, adapters, []
        for assigned in adapters:
            factors = product.factors(assigned.adapter)
            low_NK = None if factors is None else _add_delta(y_NO, x_NI, factors, assigned.rows)
            ctx.parts.append((factors, low_NK))
        ctx.save_for_backward(x_NI)
        return y_NO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_NO, product = grads[0], ctx.product
        (x_NI,) = ctx.saved_tensors
        grad_x_NI = grad_NO @ product.weight_OI if ctx.needs_input_grad[0] else None
        leaves: list[Tensor | None] = []
        for assigned, (factors, low_NK) in zip(ctx.adapters, ctx.parts, strict=True):
            if factors is None:
                continue
            rows = assigned.rows
            grad = grad_NO if rows is None else grad_NO.index_select(0, rows)
            x = x_NI if rows is None else x_NI.index_select(0, rows)
            grad_low_NK = F.linear(grad, factors.b_KO)
            if grad_x_NI is not None:
                if rows is None:
                    grad_x_NI.addmm_(grad_low_NK, factors.a_KI)
                else:
                    grad_x_NI.index_add_(0, rows, grad_low_NK @ factors.a_KI)
            grad_a_KI = grad_low_NK.T @ x
            start = 0
            for outputs, pair in product._pairs(assigned.adapter):
                end = start + pair.a.shape[0]
                grad_b = grad[:, outputs].T @ low_NK[:, start:end]
                leaves += [
                    grad_a_KI[start:end].to(pair.a.dtype),
                    grad_b.to(pair.b.dtype).mul_(assigned.adapter.scale),
                ]
                start = end
        return grad_x_NI, None, None, *leaves


def _add_delta(y_NO: Tensor, x_NI: Tensor, factors: Factors, rows: Tensor | None) -> Tensor:
    """Add the factors' delta to some rows of y, in place; returns their low-rank activations."""
    if rows is None:
        low_NK = F.linear(x_NI, factors.a_KI)
        y_NO.addmm_(low_NK, factors.b_KO)
        return low_NK
    low_NK = F.linear(x_NI.index_select(0, rows), factors.a_KI)
    y_NO.index_add_(0, rows, low_NK @ factors.b_KO)
    return low_NK


def _joint_bias(linears: Sequence[nn.Linear]) -> Tensor | None:
    if all(linear.bias is None for linear in linears):
        return None
    return torch.cat(
        [
            linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
            for linear in linears
        ]
    )


FEWEST_PACKED = 2**18
"""Numbers in an fp32 matrix that is worth packing: oneDNN takes 20 to 50 us to begin with."""


def packed(weight_OI: Tensor) -> Tensor | None:
    """The weight in the layout that oneDNN's kernels read, or None where that does not pay.

    In bfloat16 oneDNN would rearrange the weight at every product, which at a few rows takes longer than the
    product itself. In fp32 the products that torch makes of unpacked weights take up to twice as long.
    """
    # torch registers these operations only where it is built with oneDNN.
    if weight_OI.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    pays = weight_OI.dtype == torch.float32 and weight_OI.numel() >= FEWEST_PACKED
    if weight_OI.dtype == torch.bfloat16:
        pays = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.ops.mkldnn._reorder_linear_weight(weight_OI) if pays else None


def packed_linear(x_NI: Tensor, packed_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x W^T and the bias, with W as `packed` returned it."""
    return torch.ops.mkldnn._linear_pointwise(x_NI, packed_OI, bias_O, "none", [], "")
