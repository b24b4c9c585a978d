"""Draws: from logits to one token per row, with its logprob.

    w_i     ~ exp(z_i / temperature)                 restricted to top_k, then to top_p
    token   = the first i with  w_1 + ... + w_i > u * sum(w)          u uniform in [0, 1)
    logprob = z_token - logsumexp(z)                 untempered, over the whole vocabulary

Every row brings its own u, so what it draws depends on its logits and its seed, and on no
other row. Knows nothing about models, slots or stops.

Dimensions in names: B rows, V vocabulary, n the size of a small distribution, K candidates,
k draws from one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_BLOCK = 256
"""Tokens summed at once when a row's distribution is inverted."""
_FEWEST_CANDIDATES = 256
"""Likeliest tokens among which a nucleus is looked for first."""
_MOST_DRAWS = 32
"""Draws from one row that are made at once: each looks at a block of tokens of its own."""


@dataclass(frozen=True, kw_only=True)
class DrawRule:
    """How one row is drawn."""

    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """Draw among the k likeliest; 0 is off."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together hold this much of what top_k left; 1 is off."""

    @property
    def greedy(self) -> bool:
        """Whether only the likeliest token can come."""
        return self.temperature == 0 or self.top_k == 1

    @property
    def filtered(self) -> bool:
        """Whether some tokens are excluded by rank."""
        return self.top_k > 0 or self.top_p < 1


@dataclass(frozen=True, eq=False)
class Drawn:
    """One token per row. A row of logits with a NaN or an infinite maximum has NaN logprobs."""

    tokens_B: Tensor
    logprobs_B: Tensor
    """fp32, nats."""
    topk_ids_BK: Tensor | None = None
    topk_logprobs_BK: Tensor | None = None


def uniforms(seed: int) -> np.random.Generator:
    """A sample's own source of u: one `random()` per token. Counter-based, so near seeds are unrelated."""
    return np.random.Generator(np.random.Philox(key=seed % 2**128))


def draw_tokens(
    logits_BV: Tensor, rules: Sequence[DrawRule], uniforms_B: NDArray[np.float64], topk: int = 0
) -> Drawn:
    """Draw one token per row.

    Tokens that a rule excludes and tokens of probability zero are never drawn. Among equally
    likely tokens greedy takes the lowest id.

    Args:
        logits_BV: fp32.
        rules: one per row.
        uniforms_B: in [0, 1), one per row.
        topk: also return this many likeliest tokens of every row; 0 for none.
    """
    # log p = (z - max z) + log p_max is exact to fp32 whatever the size of the logits.
    top_B = logits_BV.amax(dim=-1)
    weights_BV = logits_BV.softmax(dim=-1)
    log_peak_B = weights_BV.amax(dim=-1).log()
    u_B = torch.from_numpy(uniforms_B).to(logits_BV.device)
    tokens_B = torch.empty(len(rules), dtype=torch.int64, device=logits_BV.device)
    for (greedy, _, top_k, filtered), members in _alike(rules).items():
        everyone = len(members) == len(rules)
        rows: Any = slice(None) if everyone else torch.tensor(members, device=logits_BV.device)
        if greedy:
            tokens_B[rows] = logits_BV[rows].argmax(dim=-1)
            continue
        chosen = [rules[i] for i in members]
        if chosen[0].temperature == 1:
            tempered = weights_BV[rows]
        else:
            shifted = logits_BV[rows] - top_B[rows, None]
            tempered = (shifted / _column([r.temperature for r in chosen], shifted)).exp()
        if filtered:
            top_p = _column([rule.top_p for rule in chosen], u_B)
            tokens_B[rows] = _draw_filtered(tempered, top_k, top_p, u_B[rows])
        else:
            tokens_B[rows] = _draw(tempered, u_B[rows, None])[:, 0]
    logprobs_B = logits_BV.gather(1, tokens_B[:, None])[:, 0] - top_B + log_peak_B
    if not topk:
        return Drawn(tokens_B, logprobs_B)
    top, ids = logits_BV.topk(min(topk, logits_BV.shape[1]), dim=-1)
    return Drawn(tokens_B, logprobs_B, ids, top - top_B[:, None] + log_peak_B[:, None])


def draw_repeatedly(logits_BV: Tensor, temperature: float, uniforms_Bk: NDArray[np.float64]) -> Tensor:
    """(B, k) tokens: k independent draws from each row, so that a token may come more than once.

    Args:
        logits_BV: fp32.
        temperature: 0 is greedy, which draws one token k times.
        uniforms_Bk: in [0, 1).
    """
    shifted_BV = logits_BV - logits_BV.amax(dim=-1, keepdim=True)
    if temperature == 0:
        return shifted_BV.argmax(dim=-1, keepdim=True).expand(uniforms_Bk.shape)
    weights_BV = (shifted_BV / _column([temperature], shifted_BV)).exp()
    parts = torch.from_numpy(uniforms_Bk).to(logits_BV.device).split(_MOST_DRAWS, dim=1)
    return torch.cat([_draw(weights_BV, u_Bk) for u_Bk in parts], dim=1)


def _alike(rules: Sequence[DrawRule]) -> dict[tuple[bool, bool, int, bool], list[int]]:
    """Rows that are drawn in one go: (greedy, at temperature 1, top_k, filtered) to their indices.

    Different top_k go apart, so that a row's candidates never depend on its neighbours', and so do
    temperatures that are rounded differently.
    """
    groups: dict[tuple[bool, bool, int, bool], list[int]] = {}
    for row, rule in enumerate(rules):
        kind = (False, rule.temperature == 1, rule.top_k, rule.filtered)
        if rule.greedy:
            kind = (True, False, 0, False)
        groups.setdefault(kind, []).append(row)
    return groups


def _column(values: list[float], like: Tensor) -> Tensor:
    """(n, 1) of `like`'s dtype, kept within what it can hold: a tiny temperature must not become zero."""
    limits = torch.finfo(like.dtype)
    column = torch.tensor(values, dtype=torch.float64)[:, None].clamp(limits.tiny, limits.max)
    return column.to(like.device, like.dtype)


def _draw(weights_BV: Tensor, u_Bk: Tensor) -> Tensor:
    """(B, k) tokens with probability proportional to their weights, by inverting the distribution.

    First the block of tokens is found, then the token in it: one pass over the vocabulary in
    fp32, and running sums in fp64 over a few hundred numbers only. (A running sum over the
    vocabulary costs ten times as much, and in fp32 it drops the tail.)
    """
    vocabulary = weights_BV.shape[1]
    whole = vocabulary // _BLOCK
    sums = weights_BV[:, : whole * _BLOCK].unflatten(1, (whole, _BLOCK)).sum(dim=-1)
    sums = torch.cat([sums, weights_BV[:, whole * _BLOCK :].sum(dim=-1, keepdim=True)], dim=1)
    block_Bk, rest_Bk = _invert(sums, u_Bk * sums.sum(dim=-1, keepdim=True, dtype=torch.float64))
    ids = block_Bk[..., None] * _BLOCK + torch.arange(_BLOCK, device=weights_BV.device)
    inside = weights_BV.gather(1, ids.clamp_max(vocabulary - 1).flatten(1)).view_as(ids)
    inside = inside.where(ids < vocabulary, 0.0).flatten(0, 1)
    index, _ = _invert(inside, rest_Bk.reshape(-1, 1))
    return (block_Bk * _BLOCK + index.view_as(block_Bk)).clamp_max(vocabulary - 1)


def _draw_filtered(weights_BV: Tensor, top_k: int, top_p_B1: Tensor, u_B: Tensor) -> Tensor:
    """(B,) tokens, drawn among the top_k likeliest (0: all) and of those the nucleus of mass top_p."""
    vocabulary = weights_BV.shape[1]
    if top_k:
        candidates_BK, ids_BK = weights_BV.topk(min(top_k, vocabulary), dim=-1)
        return _draw_nucleus(candidates_BK, ids_BK, candidates_BK.double().sum(-1), top_p_B1, u_B)
    totals_B = weights_BV.sum(dim=-1).double()
    tokens_B = torch.empty_like(u_B, dtype=torch.int64)
    pending = torch.arange(len(u_B), device=u_B.device)
    count = min(_FEWEST_CANDIDATES, vocabulary)
    # Most nuclei are small. A row whose candidates hold too little mass is looked at again with more.
    while len(pending):
        candidates_BK, ids_BK = weights_BV[pending].topk(count, dim=-1)
        drawn = _draw_nucleus(candidates_BK, ids_BK, totals_B[pending], top_p_B1[pending], u_B[pending])
        mass = candidates_BK.sum(dim=-1, dtype=torch.float64)
        done = mass >= top_p_B1[pending, 0] * totals_B[pending]
        if count == vocabulary:
            done = torch.ones_like(done)
        tokens_B[pending[done]] = drawn[done]
        pending = pending[~done]
        count = min(8 * count, vocabulary)
    return tokens_B


def _draw_nucleus(
    candidates_BK: Tensor, ids_BK: Tensor, totals_B: Tensor, top_p_B1: Tensor, u_B: Tensor
) -> Tensor:
    """(B,) tokens from the shortest run of candidates, likeliest first, that holds top_p of the total."""
    before = F.pad(candidates_BK.cumsum(dim=-1, dtype=torch.float64)[:, :-1], (1, 0))
    # The first candidate always stays: nothing comes before it, and top_p is above 0.
    kept = candidates_BK.where(before < top_p_B1 * totals_B[:, None], 0.0)
    index_B1, _ = _invert(kept, u_B[:, None] * kept.sum(dim=-1, keepdim=True, dtype=torch.float64))
    return ids_BK.gather(1, index_B1)[:, 0]


def _invert(weights_Bn: Tensor, target_Bk: Tensor) -> tuple[Tensor, Tensor]:
    """The first index whose running sum exceeds each target, and how far into it the target reaches.

    The target is held below the total, so that rounding never runs past the last positive
    weight; an index of weight zero is never the first to exceed anything.
    """
    sums = weights_Bn.cumsum(dim=-1, dtype=torch.float64)
    total = sums[:, -1:]
    target = torch.minimum(target_Bk, total.nextafter(torch.zeros_like(total)))
    # NaN rows find no index; any will do, since their logprob is NaN too.
    index = torch.searchsorted(sums, target, right=True).clamp_max(weights_Bn.shape[1] - 1)
    rest = target - sums.gather(1, index) + weights_Bn.gather(1, index)
    return index, rest.clamp_min(0.0)
