"""Logprobs of chosen tokens, from hidden rows, without a [rows, vocabulary] tensor of the batch.

    log p(v | row) = z_v - logsumexp(z)      z = h W^T (+ the adapter's delta), in fp32

The unembedding runs only on rows where something is asked for, a chunk of rows at a time;
the backward pass recomputes each chunk's logits, and skips rows whose gradient is zero (given
tokens, advantages of zero). Knows nothing about losses or sequences.

Dimensions in names: R rows, M (row, target) pairs, V vocabulary, E hidden size, C rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from tinkerlite_server.engine.lora import Adapter, AdapterRows
from tinkerlite_server.engine.unembedding import HeadFactors, Unembedding


class HasUnembedding(Protocol):
    """What is asked of a model here."""

    @property
    def unembed(self) -> Unembedding:
        """Hidden rows to logits."""
        ...


def target_logprobs(
    model: HasUnembedding,
    hidden_RE: Tensor,
    adapters: Sequence[AdapterRows],
    pair_rows_M: Tensor,
    pair_targets_M: Tensor,
    chunk: int,
) -> Tensor:
    """log p of each pair's target at its row: (M,) fp32, nats.

    Differentiable in rows and adapters, and in the unembedding itself where that is trained.

    Args:
        hidden_RE: final hidden states of the rows in question.
        adapters: which of *these* rows use which adapter (only their unembedding part matters).
        pair_rows_M: indices into the rows; any order, rows may repeat or be absent.
        chunk: most rows whose logits exist at once.
    """
    out_M = hidden_RE.new_empty(len(pair_rows_M), dtype=torch.float32)
    pieces: list[Tensor] = []
    places: list[Tensor] = []
    unembed = model.unembed
    # One adapter at a time: the head's low-rank factors are inputs of the autograd function.
    for rows, adapter in _by_adapter(hidden_RE, adapters):
        if rows is None:
            local_rows, selected, hidden = pair_rows_M, None, hidden_RE
        else:
            local = torch.full((hidden_RE.shape[0],), -1, dtype=torch.long, device=rows.device)
            local[rows] = torch.arange(len(rows), device=rows.device)
            selected = torch.nonzero(local[pair_rows_M] >= 0).squeeze(1)
            local_rows, hidden = local[pair_rows_M[selected]], hidden_RE.index_select(0, rows)
        targets = pair_targets_M if selected is None else pair_targets_M[selected]
        logprobs: Tensor = _PairLogprobs.apply(  # type: ignore[no-untyped-call]
            hidden,
            unembed,
            unembed.weight,
            unembed.bias,
            adapter,
            *_leaves(adapter),
            local_rows,
            targets,
            chunk,
        )
        if selected is None:
            return logprobs
        pieces.append(logprobs)
        places.append(selected)
    return out_M.index_copy(0, torch.cat(places), torch.cat(pieces))


def log_sum_exp(logits_CV: Tensor, scratch: Tensor) -> Tensor:
    """(C,) logsumexp of fp32 rows. Several times faster on a CPU than torch.logsumexp, and as exact.

    Args:
        scratch: at least as many rows, overwritten.
    """
    top_C = logits_CV.amax(dim=-1)
    # softmax at the maximum is 1 / sum(exp(z - max)): its kernel is vectorised where exp + sum is not fused.
    peak_C = torch.softmax(logits_CV, dim=-1, out=scratch[: len(logits_CV)]).amax(dim=-1)
    return top_C - peak_C.log()


def _by_adapter(
    hidden_RE: Tensor, adapters: Sequence[AdapterRows]
) -> list[tuple[Tensor | None, Adapter | None]]:
    """Rows (None: all) of every adapter that changes the head, and those of none."""
    parts: list[tuple[Tensor | None, Adapter | None]] = []
    bare = torch.ones(hidden_RE.shape[0], dtype=torch.bool, device=hidden_RE.device)
    for assigned in adapters:
        if "lm_head" in assigned.adapter.pairs:
            if assigned.rows is None:
                return [(None, assigned.adapter)]
            bare[assigned.rows] = False
            parts.append((assigned.rows, assigned.adapter))
    if not parts:
        return [(None, None)]
    rest = torch.nonzero(bare).squeeze(1)
    return parts if not len(rest) else [*parts, (rest, None)]


def _leaves(adapter: Adapter | None) -> tuple[Tensor | None, Tensor | None]:
    """The factors that get gradients."""
    if adapter is None:
        return None, None
    pair = adapter.pairs["lm_head"]
    return pair.a, pair.b


class _PairLogprobs(torch.autograd.Function):
    """Chunked log-softmax gather whose backward recomputes the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_RE: Tensor,
        unembed: Unembedding,
        weight_VE: Tensor,
        bias_V: Tensor | None,
        adapter: Adapter | None,
        a: Tensor | None,
        b: Tensor | None,
        rows_M: Tensor,
        targets_M: Tensor,
        chunk: int,
    ) -> Tensor:
        order_M = torch.argsort(rows_M, stable=True)
        used_U, row_of_pair_M = torch.unique_consecutive(rows_M[order_M], return_inverse=True)
        sorted_targets_M = targets_M[order_M]
        bounds = torch.searchsorted(
            row_of_pair_M, torch.arange(0, len(used_U) + chunk, chunk, device=used_U.device)
        ).tolist()
        logprobs_M = torch.empty(len(rows_M), dtype=torch.float32, device=hidden_RE.device)
        lse_U = torch.empty(len(used_U), dtype=torch.float32, device=hidden_RE.device)
        factors = None if adapter is None else unembed.factors(adapter)
        room, scratch = (unembed.room(min(len(used_U), chunk)) for _ in range(2))
        for number, start in enumerate(range(0, len(used_U), chunk)):
            rows_C = used_U[start : start + chunk]
            logits_CV = unembed(hidden_RE[rows_C], factors, room)
            lse_U[start : start + len(rows_C)] = log_sum_exp(logits_CV, scratch)
            pairs = slice(bounds[number], bounds[number + 1])
            local = row_of_pair_M[pairs] - start
            logprobs_M[order_M[pairs]] = (
                logits_CV[local, sorted_targets_M[pairs]] - lse_U[row_of_pair_M[pairs]]
            )
        ctx.save_for_backward(hidden_RE, a, b, order_M, used_U, row_of_pair_M, sorted_targets_M, lse_U)
        ctx.unembed, ctx.factors, ctx.chunk = unembed, factors, chunk
        return logprobs_M

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """d logits = onehot(target) * g - softmax * sum(g), a chunk of rows at a time."""
        hidden_RE, a, b, order_M, used_U, row_of_pair_M, targets_M, lse_U = ctx.saved_tensors
        weight_VE = ctx.unembed.weight
        grad_M = grads[0].float()[order_M]
        grad_hidden_RE = torch.zeros_like(hidden_RE)
        grad_a = None if a is None else torch.zeros_like(a)
        grad_b = None if b is None else torch.zeros_like(b)
        # In fp32 over the chunks; autograd rounds it to the weight's dtype once.
        trains_weight, trains_bias = ctx.needs_input_grad[2:4]
        grad_weight = torch.zeros_like(weight_VE, dtype=torch.float32) if trains_weight else None
        grad_bias = weight_VE.new_zeros(len(weight_VE), dtype=torch.float32) if trains_bias else None
        total_U = torch.zeros_like(lse_U).index_add_(0, row_of_pair_M, grad_M)
        live_M = grad_M != 0
        live_U = torch.zeros(len(used_U), dtype=torch.bool, device=used_U.device)
        live_U[row_of_pair_M[live_M]] = True
        rows_L = torch.nonzero(live_U).squeeze(1)
        position_U = torch.cumsum(live_U, 0) - 1
        pair_row_P = position_U[row_of_pair_M[live_M]]
        pair_target_P, pair_grad_P = targets_M[live_M], grad_M[live_M]
        room = ctx.unembed.room(min(len(rows_L), ctx.chunk))
        factors: HeadFactors | None = ctx.factors
        bounds = torch.searchsorted(
            pair_row_P, torch.arange(0, len(rows_L) + ctx.chunk, ctx.chunk, device=rows_L.device)
        ).tolist()
        for number, start in enumerate(range(0, len(rows_L), ctx.chunk)):
            rows_C = rows_L[start : start + ctx.chunk]
            hidden_CE = hidden_RE[used_U[rows_C]]
            grad_CV = ctx.unembed(hidden_CE, factors, room)
            grad_CV.sub_(lse_U[rows_C, None]).exp_().mul_(-total_U[rows_C, None])
            inside = slice(bounds[number], bounds[number + 1])
            grad_CV.index_put_(
                (pair_row_P[inside] - start, pair_target_P[inside]), pair_grad_P[inside], accumulate=True
            )
            if grad_bias is not None:
                grad_bias += grad_CV.sum(0)
            grad_CV = grad_CV.to(weight_VE.dtype)
            if grad_weight is not None:
                grad_weight += ctx.unembed.weight_gradient(grad_CV, hidden_CE)
            grad_CE = grad_CV @ weight_VE
            if factors is not None and grad_a is not None and grad_b is not None:
                grad_low_CK = (grad_CV @ factors.b_VK) * factors.scale
                grad_CE += grad_low_CK @ factors.a_KE
                grad_a += (grad_low_CK.T @ hidden_CE.to(grad_CV.dtype)).to(grad_a.dtype)
                low_CK = ctx.unembed.low(hidden_CE, factors)
                grad_b += (grad_CV.T @ low_CK.to(grad_CV.dtype)).to(grad_b.dtype)
            grad_hidden_RE[used_U[rows_C]] = grad_CE.to(grad_hidden_RE.dtype)
        return grad_hidden_RE, None, grad_weight, grad_bias, None, grad_a, grad_b, None, None, None
