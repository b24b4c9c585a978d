"""Scoring: what requests ask about their prompts, in one walk over the rows of a pass.

At every position after the first a request may ask for the logprob of the prompt's own token, for
the likeliest tokens, for logprobs of tokens that it names, and for tokens drawn anew. All of it is
read off the same logits, which are made once for each row that anyone asks about, a chunk of
rows at a time: there is never a [rows, vocabulary] array of a batch.

What predicts position i + 1 of a prompt is the row of its token i. Knows nothing about queues.

Dimensions in names: N rows of the stream, P tokens of one prompt, C rows of a chunk, M (row, token)
pairs, R rows whose likeliest tokens are wanted and K how many, k draws a row, E hidden size,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinkerlite.types import EMPTY_SLOT_LOGPROB, PromptAltTokens, TensorData, TopkLogprobs
from tinkerlite_server.engine.base_model import BaseModel
from tinkerlite_server.engine.draws import draw_repeatedly, uniforms
from tinkerlite_server.engine.logprobs import log_sum_exp
from tinkerlite_server.engine.lora import AdapterRows
from tinkerlite_server.engine.protocols import Floats, Ids, SampleWork


@dataclass(frozen=True, eq=False, kw_only=True)
class PromptScores:
    """What one request is told about its prompt; None where it did not ask."""

    finite: bool
    """Whether every number below is one; if not, the weights have diverged."""
    logprobs: Floats | None
    """(P,), NaN where nothing was scored: always first, since nothing predicts the first token."""
    topk: TopkLogprobs | None
    """(P, K), empty rows where `logprobs` has NaN."""
    targets: TensorData | None
    """Laid out as the request's, 0 where that has -1."""
    alternatives: PromptAltTokens | None
    """Both (P-1, k)."""


NOTHING_ASKED = PromptScores(finite=True, logprobs=None, topk=None, targets=None, alternatives=None)


def score_prompts(
    model: BaseModel,
    hidden_NE: Tensor,
    adapters: Sequence[AdapterRows],
    works: Sequence[SampleWork],
    prompt_rows: Sequence[Ids],
    chunk: int,
) -> list[PromptScores]:
    """The answers to each request's questions.

    Args:
        adapters: which rows of the stream use which adapter.
        prompt_rows: the stream's rows of each request's prompt, rising. Requests may share rows.
        chunk: most rows whose full-vocabulary logits exist at once.
    """
    asked = [_Asked(work, rows) for work, rows in zip(works, prompt_rows, strict=True)]
    pair_rows_M, pair_ids_M = (
        np.concatenate(parts) if parts else np.empty(0, np.int64)
        for parts in ([each.pair_rows for each in asked], [each.pair_ids for each in asked])
    )
    ranked = [each.ranked_rows for each in asked if len(each.ranked_rows)]
    ranked_R = np.unique(np.concatenate(ranked)) if ranked else np.empty(0, np.int64)
    width = max((each.work.topk_prompt_logprobs for each in asked), default=0)
    walk = _Walk(pair_rows_M, pair_ids_M, ranked_R, min(width, model.unembed.weight.shape[0]))
    draws = [each.draws for each in asked if each.draws is not None]
    rows = np.unique(np.concatenate([pair_rows_M, ranked_R, *(each.rows for each in draws)]))
    room, scratch = (model.unembed.room(min(len(rows), chunk)) for _ in range(2))
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        rows_C = torch.from_numpy(part).to(model.device)
        logits_CV = model.logits(hidden_NE.index_select(0, rows_C), _of_rows(adapters, rows_C), room)
        read = _Chunk(part, logits_CV, log_sum_exp(logits_CV, scratch))
        walk.take(read)
        for each in draws:
            each.take(read)
    return _scores(asked, walk)


def unasked_tokens(work: SampleWork) -> int:
    """How many of a prompt's first tokens predict nothing that the request asks about; its last one counts
    as asked about."""
    asked = _Asked(work, np.arange(len(work.prompt)))
    rows = [asked.pair_rows, asked.ranked_rows]
    if asked.draws is not None:
        rows.append(asked.draws.rows)
    return min([len(work.prompt) - 1, *(int(part.min()) for part in rows if len(part))])


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Some rows, rising, and their logits."""

    rows: Ids
    logits_CV: Tensor
    log_total_C: Tensor

    def among(self, rising: Ids) -> slice:
        """Which of other rows, rising as well, lie within this chunk's span."""
        low, high = np.searchsorted(rising, [self.rows[0], self.rows[-1] + 1])
        return slice(int(low), int(high))

    def places(self, rows: Ids) -> Tensor:
        """Where rows of this chunk stand in it."""
        return torch.from_numpy(np.searchsorted(self.rows, rows)).to(self.logits_CV.device)


class _Asked:
    """One request's questions, as rows of the stream."""

    def __init__(self, work: SampleWork, rows_P: Ids) -> None:
        self.work = work
        before = rows_P[:-1]
        last_n = work.prompt_logprobs_last_n
        self.first = 0 if last_n is None else len(before) - last_n
        """The first of them whose prediction is scored or ranked."""
        self.ranked_rows = before[self.first :] if work.topk_prompt_logprobs else before[:0]
        own_rows = before[self.first :] if work.prompt_logprobs else before[:0]
        named_rows, named_ids = before[:0], before[:0]
        self.named = np.empty(0, np.bool_)
        """Which cells of `target_prompt_logprobs` name a token."""
        if work.target_prompt_logprobs is not None:
            cells = work.target_prompt_logprobs.values.reshape(-1)
            self.named = cells >= 0
            named_rows = before[_row_of_each_value(work.target_prompt_logprobs)[self.named]]
            named_ids = cells[self.named]
        self.own = len(own_rows)
        """How many pairs are the prompt's own tokens; those that the request names follow."""
        self.pair_rows = np.concatenate([own_rows, named_rows])
        self.pair_ids = np.concatenate([work.prompt[len(work.prompt) - self.own :], named_ids])
        self.draws = _Draws(work, before) if work.prompt_alt_tokens_k else None


def _row_of_each_value(tensor: TensorData) -> Ids:
    """The matrix row in which each stored value stands."""
    rows, columns = tensor.shape
    per_row = np.full(rows, columns) if tensor.crow_indices is None else np.diff(tensor.crow_indices)
    return np.repeat(np.arange(rows), per_row)


class _Walk:
    """Pairs and rankings of all requests, filled in chunk by chunk."""

    def __init__(self, pair_rows_M: Ids, pair_ids_M: Ids, ranked_R: Ids, width: int) -> None:
        self._order = np.argsort(pair_rows_M, kind="stable")
        self._rows, self._ids = pair_rows_M[self._order], pair_ids_M[self._order]
        self.logprobs_M = np.empty(len(pair_rows_M), np.float32)
        self.ranked_R = ranked_R
        self.topk_ids_RK = np.empty((len(ranked_R), width), np.int32)
        self.topk_logprobs_RK = np.empty((len(ranked_R), width), np.float32)

    def take(self, chunk: _Chunk) -> None:
        """Answer what these rows can answer."""
        pairs, ranked = chunk.among(self._rows), chunk.among(self.ranked_R)
        if pairs.start < pairs.stop:
            places = chunk.places(self._rows[pairs])
            ids = torch.from_numpy(self._ids[pairs]).to(places.device)
            logprobs = chunk.logits_CV[places, ids] - chunk.log_total_C[places]
            self.logprobs_M[self._order[pairs]] = logprobs.cpu().numpy()
        if ranked.start < ranked.stop:
            places = chunk.places(self.ranked_R[ranked])
            logits = chunk.logits_CV if len(places) == len(chunk.rows) else chunk.logits_CV[places]
            top, ids = logits.topk(self.topk_ids_RK.shape[1], dim=-1)
            self.topk_ids_RK[ranked] = ids.cpu().numpy()
            self.topk_logprobs_RK[ranked] = (top - chunk.log_total_C[places, None]).cpu().numpy()


class _Draws:
    """One request's alternatives. Its numbers come row after row, so that chunks do not matter."""

    def __init__(self, work: SampleWork, before: Ids) -> None:
        self.rows = before
        self._temperature = work.temperature
        self._uniforms = uniforms(work.prompt_seed)
        self.tokens = np.empty((len(before), work.prompt_alt_tokens_k), np.int64)
        self.logprobs = np.empty(self.tokens.shape, np.float32)

    def take(self, chunk: _Chunk) -> None:
        """Draw at those of its rows that are in the chunk."""
        mine = chunk.among(self.rows)
        if mine.start == mine.stop:
            return
        places = chunk.places(self.rows[mine])
        logits = chunk.logits_CV[places]
        numbers = self._uniforms.random(self.tokens[mine].shape)
        tokens = draw_repeatedly(logits, self._temperature, numbers)
        self.tokens[mine] = tokens.cpu().numpy()
        self.logprobs[mine] = (logits.gather(1, tokens) - chunk.log_total_C[places, None]).cpu().numpy()


def _scores(asked: Sequence[_Asked], walk: _Walk) -> list[PromptScores]:
    """Each request's own share."""
    ends = np.cumsum([len(each.pair_rows) for each in asked])
    shares = np.split(walk.logprobs_M, ends[:-1]) if len(ends) else []
    return [_share(each, logprobs, walk) for each, logprobs in zip(asked, shares, strict=True)]


def _share(each: _Asked, pairs: Floats, walk: _Walk) -> PromptScores:
    work, length = each.work, len(each.work.prompt)
    numbers = [pairs]
    logprobs = topk = targets = alternatives = None
    if work.prompt_logprobs:
        logprobs = np.full(length, np.nan, np.float32)
        logprobs[length - each.own :] = pairs[: each.own]
    if work.topk_prompt_logprobs:
        k = min(work.topk_prompt_logprobs, walk.topk_ids_RK.shape[1])
        places = np.searchsorted(walk.ranked_R, each.ranked_rows)
        ids = np.zeros((length, k), np.int32)
        values = np.full((length, k), EMPTY_SLOT_LOGPROB, np.float32)
        ids[each.first + 1 :] = walk.topk_ids_RK[places, :k]
        values[each.first + 1 :] = walk.topk_logprobs_RK[places, :k]
        topk = TopkLogprobs(ids, values)
        numbers.append(values)
    if work.target_prompt_logprobs is not None:
        targets = _laid_out_like(work.target_prompt_logprobs, each.named, pairs[each.own :])
    if each.draws is not None:
        alternatives = PromptAltTokens(TensorData(each.draws.tokens), TensorData(each.draws.logprobs))
        numbers.append(each.draws.logprobs)
    return PromptScores(
        finite=all(np.isfinite(values).all() for values in numbers),
        logprobs=logprobs,
        topk=topk,
        targets=targets,
        alternatives=alternatives,
    )


def _laid_out_like(asked: TensorData, named: NDArray[np.bool_], logprobs: Floats) -> TensorData:
    """Logprobs of the cells that name a token, in the request's own layout."""
    values = np.zeros(len(named), np.float32)
    values[named] = logprobs
    return TensorData(values, "float32", asked.shape, asked.sparse_crow_indices, asked.sparse_col_indices)


def _of_rows(adapters: Sequence[AdapterRows], rows_C: Tensor) -> list[AdapterRows]:
    """The same assignment for a selection of the rows."""
    selected: list[AdapterRows] = []
    for assigned in adapters:
        if assigned.rows is None:
            selected.append(assigned)
            continue
        inside = torch.nonzero(torch.isin(rows_C, assigned.rows)).squeeze(1)
        if len(inside):
            selected.append(AdapterRows(assigned.adapter, inside))
    return selected
