"""Attention among the rows of blocks, with a backward pass for processors.

    P = softmax(s Q K^T + mask)      O = P V
    dV = P^T dO      dS = P (dP - rowsum(P dP)), dP = dO V^T      dQ = s dS K      dK = s dS^T Q

torch's backward pass of attention takes a call for every block, and each costs a processor
more than the arithmetic of a short block. Here blocks of similar lengths are one batch of
matrices, long ones go by tiles of queries, which see no later key, and the query heads that share a
key head are as many queries of it. Slow twin: torch's own gradient, which other devices use.

Source of the formulas: Dao et al. 2022, appendix B (arXiv:2205.14135).

Dimensions in names: N rows, H query heads, G key-value heads, R = H / G, D head size, B blocks of
a batch, T rows of its longest block, Q queries of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinkerlite_server.engine.unembedding import multiplying_in_bfloat16

_TILE = 128
"""Most queries in a tile: of a long block, nearly half of all pairs are never computed."""
_MOST_PAIRS = 1 << 19
"""Of queries and keys in a batch, for all heads: what stays in a processor's cache, as fp32."""
_LEAST_FILLED = 0.75
"""A batch's shortest block has at least this share of the rows of its longest."""
_REPEATS_KEYS = torch.__version__ < "2.14"
"""Earlier ones have no kernel on CUDA for grouped heads behind a mask but the one that makes all scores."""


@dataclass(frozen=True, eq=False)
class KeysValues:
    """Keys and values of one sequence's first T tokens, by layer, each (G, T, D)."""

    keys: list[Tensor]
    values: list[Tensor]

    @property
    def tokens(self) -> int:
        """How many."""
        return self.keys[0].shape[1]

    @property
    def bytes(self) -> int:
        """What they take."""
        return sum(layer.nbytes for layer in (*self.keys, *self.values))

    def first(self, tokens: int) -> KeysValues:
        """Those of fewer tokens; no copies."""
        return KeysValues(
            [layer[:, :tokens] for layer in self.keys], [layer[:, :tokens] for layer in self.values]
        )

    def and_then(self, layer: int, k_GND: Tensor, v_GND: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values of these tokens, and of those that follow them."""
        return torch.cat([self.keys[layer], k_GND], dim=1), torch.cat([self.values[layer], v_GND], dim=1)


@dataclass(frozen=True, eq=False)
class Block:
    """Rows that attend among themselves only: one sequence, or several behind a shared prefix."""

    start: int
    end: int
    mask: Tensor | None = None
    """(rows, rows) True where the row may look; None is plain causal."""
    past: KeysValues | None = None
    """What comes before the rows and is known already: they look at all of it, and then are plain causal.
    Not in passes that are differentiated."""

    @property
    def rows(self) -> int:
        """How many."""
        return self.end - self.start


class BlockAttention:
    """Attention of one stream: the same for every layer.

    Args:
        blocks: in the order of the rows, which they cover.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._blocks = blocks
        self._batches: list[_Batch] | None = None
        self._masks: dict[tuple[int, int], Tensor] = {}

    def __call__(self, q_HND: Tensor, k_GND: Tensor, v_GND: Tensor, scaling: float, layer: int = 0) -> Tensor:
        """(N, H, D), in the dtype of its inputs; differentiable in them. The layer says which past it is."""
        if q_HND.device.type == "cpu" and torch.is_grad_enabled():
            return _Differentiable.apply(q_HND, k_GND, v_GND, self, scaling)  # type: ignore[no-untyped-call]
        return self.forward(q_HND, k_GND, v_GND, scaling, layer)

    def forward(self, q_HND: Tensor, k_GND: Tensor, v_GND: Tensor, scaling: float, layer: int = 0) -> Tensor:
        """By torch, a block at a time."""
        outputs: list[Tensor] = []
        for block in self._blocks:
            rows = slice(block.start, block.end)
            k_GTD, v_GTD, mask = k_GND[:, rows], v_GND[:, rows], block.mask
            if block.past is not None:
                k_GTD, v_GTD = block.past.and_then(layer, k_GTD, v_GTD)
                mask = self._after(block.past.tokens, block.rows, q_HND.device)
            if mask is not None and _REPEATS_KEYS and q_HND.device.type == "cuda":
                times = q_HND.shape[0] // k_GND.shape[0]
                k_GTD, v_GTD = (each.repeat_interleave(times, dim=0) for each in (k_GTD, v_GTD))
            output_HTD = F.scaled_dot_product_attention(
                q_HND[None, :, rows],
                k_GTD[None],
                v_GTD[None],
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=q_HND.shape[0] != k_GTD.shape[0],
            )[0]
            outputs.append(output_HTD)
        return torch.cat(outputs, dim=1).transpose(0, 1)

    def _after(self, past: int, rows: int, device: torch.device) -> Tensor:
        """(rows, past + rows) True where a row behind `past` tokens may look; made once."""
        if (past, rows) not in self._masks:
            places = torch.arange(past + rows, device=device)
            self._masks[past, rows] = places[None, :] <= places[past:, None]
        return self._masks[past, rows]

    def batches(self, heads: int) -> list[_Batch]:
        """The blocks as the backward pass takes them; made once."""
        if self._batches is None:
            self._batches = list(_batches(self._blocks, heads))
        return self._batches


@dataclass(frozen=True, eq=False)
class _Batch:
    """Blocks that are differentiated together."""

    rows_BT: Tensor
    """Rows of the stream; behind a shorter block's end, its first row again."""
    padding_BT: Tensor | None
    """True behind a block's end; None if all are equally long."""
    hidden_TT: Tensor | None
    """True where a row may not look; None hides later rows alone."""


def _batches(blocks: Sequence[Block], heads: int) -> Iterator[_Batch]:
    alike: list[Block] = []
    for block in sorted(blocks, key=lambda block: -block.rows):
        if block.mask is not None:
            yield _batch([block])
            continue
        if alike:
            longest = alike[0].rows
            pairs = (len(alike) + 1) * heads * min(longest, _TILE) * longest
            if pairs > _MOST_PAIRS or block.rows < _LEAST_FILLED * longest:
                yield _batch(alike)
                alike = []
        alike.append(block)
    if alike:
        yield _batch(alike)


def _batch(blocks: Sequence[Block]) -> _Batch:
    """Of blocks with the longest first; one that has a mask is alone."""
    place_T = torch.arange(blocks[0].rows)
    starts_B1 = torch.tensor([block.start for block in blocks])[:, None]
    padding_BT = place_T >= torch.tensor([block.rows for block in blocks])[:, None]
    mask = blocks[0].mask
    return _Batch(
        rows_BT=torch.where(padding_BT, starts_B1, starts_B1 + place_T),
        padding_BT=padding_BT if bool(padding_BT.any()) else None,
        hidden_TT=None if mask is None else ~mask,
    )


class _Differentiable(torch.autograd.Function):
    """Keeps queries, keys and values, and computes everything else again."""

    @staticmethod
    def forward(
        ctx: Any, q_HND: Tensor, k_GND: Tensor, v_GND: Tensor, attention: BlockAttention, scaling: float
    ) -> Tensor:
        ctx.save_for_backward(q_HND, k_GND, v_GND)
        ctx.attention, ctx.scaling = attention, scaling
        return attention.forward(q_HND, k_GND, v_GND, scaling)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_NHD, k_NGD, v_NGD = (tensor.transpose(0, 1) for tensor in ctx.saved_tensors)
        inputs = (q_NHD, k_NGD, v_NGD)
        grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs)
        half = q_NHD.dtype == torch.bfloat16
        with multiplying_in_bfloat16() if half else nullcontext():
            for batch in ctx.attention.batches(q_NHD.shape[1]):
                parts = _batch_gradients(batch, inputs, grads[0], ctx.scaling)
                for grad, part_BTHD in zip((grad_q, grad_k, grad_v), parts, strict=True):
                    if batch.padding_BT is None:
                        grad[batch.rows_BT.flatten()] = part_BTHD.flatten(0, 1).to(grad.dtype)
                    else:
                        real_BT = ~batch.padding_BT
                        grad[batch.rows_BT[real_BT]] = part_BTHD[real_BT].to(grad.dtype)
        return grad_q.transpose(0, 1), grad_k.transpose(0, 1), grad_v.transpose(0, 1), None, None


def _batch_gradients(
    batch: _Batch, inputs: tuple[Tensor, Tensor, Tensor], grad_NHD: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries (B, T, H, D), keys and values (B, T, G, D), in fp32."""
    blocks, longest = batch.rows_BT.shape
    kv_heads = inputs[1].shape[1]

    def rows_of(x_NHD: Tensor) -> Tensor:
        """(B G, R, T, D) in fp32: query heads by the key head that they share; R = 1 of keys and values."""
        x_BTGRD = x_NHD.index_select(0, batch.rows_BT.flatten()).unflatten(1, (kv_heads, -1))
        x_BTGRD = x_BTGRD.unflatten(0, (blocks, longest))
        return x_BTGRD.permute(0, 2, 3, 1, 4).float().flatten(0, 1)

    def laid_out(x_BGRTD: Tensor) -> Tensor:
        return x_BGRTD.unflatten(0, (blocks, kv_heads)).permute(0, 3, 1, 2, 4).flatten(2, 3)

    q, k, v = (rows_of(x) for x in inputs)
    k, v = k[:, 0], v[:, 0]
    grad = rows_of(grad_NHD)
    if batch.padding_BT is not None:
        # A query that does not exist adds nothing; no query that does looks behind its block's end.
        grad.unflatten(0, (blocks, kv_heads)).masked_fill_(batch.padding_BT[:, None, None, :, None], 0)
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for start in range(0, longest, _TILE):
        queries = slice(start, min(start + _TILE, longest))
        seen = slice(0, queries.stop)
        q_tile, grad_tile = q[:, :, queries].flatten(1, 2), grad[:, :, queries].flatten(1, 2)
        scores = torch.bmm(q_tile, k[:, seen].transpose(1, 2)).mul_(scaling)
        _hide(scores.unflatten(1, (q.shape[1], -1)), queries, batch.hidden_TT)
        attended = torch.softmax(scores, dim=-1, out=scores)
        grad_v[:, seen].baddbmm_(attended.transpose(1, 2), grad_tile)
        grad_attended = torch.bmm(grad_tile, v[:, seen].transpose(1, 2))
        grad_scores = torch.ops.aten._softmax_backward_data(grad_attended, attended, -1, torch.float32)
        grad_q[:, :, queries] = torch.bmm(grad_scores, k[:, seen]).unflatten(1, (q.shape[1], -1))
        grad_k[:, seen].baddbmm_(grad_scores.transpose(1, 2), q_tile)
    grad_q.mul_(scaling)
    grad_k.mul_(scaling)
    return laid_out(grad_q), laid_out(grad_k[:, None]), laid_out(grad_v[:, None])


def _hide(scores: Tensor, queries: slice, hidden_TT: Tensor | None) -> None:
    """Minus infinity, in place, where queries (second to last) may not look at keys (last)."""
    if hidden_TT is None:
        rows = queries.stop - queries.start
        later_QQ = torch.ones(rows, rows, dtype=torch.bool).triu_(1)
        scores[..., queries].masked_fill_(later_QQ, -torch.inf)
    else:
        scores.masked_fill_(hidden_TT[queries, : queries.stop], -torch.inf)
