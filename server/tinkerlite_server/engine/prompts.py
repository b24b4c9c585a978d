"""Reading prompts: one packed pass over several, for what comes next and for what was asked about them.

A pass gives, per prompt, the last hidden state (from which first tokens are drawn), the keys
and values if samples go on decoding from it, and the logprobs of its own tokens. Beginnings
that prompts share are computed once (streams.py). Knows nothing about slots or queues.

Dimensions in names: N rows of the stream, P tokens of one prompt, M scored tokens, R rows whose
likeliest tokens are wanted, K how many of them, E hidden size, G key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tinkerlite.types import TopkLogprobs
from tinkerlite.types.sampling import EMPTY_SLOT_LOGPROB
from tinkerlite_server.engine.base_model import BaseModel
from tinkerlite_server.engine.logprobs import target_logprobs, topk_logprobs
from tinkerlite_server.engine.lora import Adapter, AdapterRows
from tinkerlite_server.engine.protocols import Floats, Ids
from tinkerlite_server.engine.streams import PackedStream, prefix_groups, stream_order


@dataclass(frozen=True, eq=False, kw_only=True)
class Prompt:
    """A prompt, under one adapter, and what is wanted of it besides its last hidden state."""

    tokens: Ids
    adapter: Adapter | None
    keep: bool
    """Keys and values."""
    logprobs: bool
    topk: int
    """The likeliest tokens at each position; 0 for none."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PromptState:
    """What one prompt came to."""

    last_hidden_E: Tensor
    keys: list[Tensor] | None
    """(G, P, D) by layer."""
    values: list[Tensor] | None
    logprobs: Floats | None
    """(P,), NaN first: nothing predicts the first token."""
    topk: TopkLogprobs | None
    """(P, K), the first row empty."""


class PrefillStream(PackedStream):
    """A packed stream that keeps each layer's keys and values."""

    def __init__(
        self, sequences: Sequence[Ids], adapters: Sequence[Adapter | None], device: torch.device
    ) -> None:
        super().__init__(sequences, adapters, device)
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def attend(self, layer: int, q_HND: Tensor, k_GND: Tensor, v_GND: Tensor, scaling: float) -> Tensor:
        """As a packed stream does."""
        self._keys[layer], self._values[layer] = k_GND, v_GND
        return super().attend(layer, q_HND, k_GND, v_GND, scaling)

    def sequence_keys_values(self, index: int) -> tuple[list[Tensor], list[Tensor]]:
        """One sequence's keys and values by layer, each (G, P, D); copies, so the pass can be freed."""
        rows = torch.from_numpy(self.rows[index]).to(self.input_ids_N.device)
        layers = range(len(self._keys))
        return (
            [self._keys[layer].index_select(1, rows) for layer in layers],
            [self._values[layer].index_select(1, rows) for layer in layers],
        )


def read_prompts(model: BaseModel, prompts: Sequence[Prompt], head_chunk: int) -> list[PromptState]:
    """One pass over all of them.

    Args:
        head_chunk: most rows whose full-vocabulary logits exist at once.
    """
    sequences = [prompt.tokens for prompt in prompts]
    adapters = [prompt.adapter for prompt in prompts]
    kind = PrefillStream if any(prompt.keep for prompt in prompts) else PackedStream
    stream = kind(sequences, adapters, model.device)
    hidden_NE = model.hidden(stream)
    last_rows = torch.tensor([int(rows[-1]) for rows in stream.rows], device=model.device)
    last_hidden = hidden_NE.index_select(0, last_rows).unbind(0)
    logprobs = _prompt_logprobs(model, stream, hidden_NE, prompts, head_chunk)
    topk = _prompt_topk(model, stream, hidden_NE, prompts, head_chunk)
    states: list[PromptState] = []
    for index, prompt in enumerate(prompts):
        keys = values = None
        if prompt.keep and isinstance(stream, PrefillStream):
            keys, values = stream.sequence_keys_values(index)
        states.append(
            PromptState(
                last_hidden_E=last_hidden[index],
                keys=keys,
                values=values,
                logprobs=logprobs[index],
                topk=topk[index],
            )
        )
    return states


def choose_prompts(
    sequences: Sequence[Ids], adapters: Sequence[Adapter | None], max_tokens: int
) -> list[int]:
    """Indices of those to read in the next pass: the first, what shares its beginning, then others in order.

    The pass has at most `max_tokens` rows, a shared beginning counted once; a longer prompt is
    read alone. What is left out comes no later for it: the first of them is first next time.
    """
    groups = prefix_groups(sequences, adapters, stream_order(sequences, adapters))
    chosen: list[int] = []
    used = 0
    for members, shared in sorted(groups, key=lambda group: min(group[0])):
        used += shared
        for member in sorted(members):
            own = len(sequences[member]) - shared
            if chosen and used + own > max_tokens:
                return chosen
            chosen.append(member)
            used += own
    return chosen


def _prompt_logprobs(
    model: BaseModel, stream: PackedStream, hidden_NE: Tensor, prompts: Sequence[Prompt], head_chunk: int
) -> list[Floats | None]:
    """log p of every prompt's tokens 1 .. P-1, each read off the row before it."""
    scored = [i for i, prompt in enumerate(prompts) if prompt.logprobs]
    results: list[Floats | None] = [None] * len(prompts)
    flat = np.empty(0, np.float32)
    rows = [stream.rows[i][:-1] for i in scored]
    if sum(map(len, rows)):
        flat_M = target_logprobs(
            model,
            hidden_NE,
            stream.adapters,
            torch.from_numpy(np.concatenate(rows)).to(model.device),
            torch.from_numpy(np.concatenate([prompts[i].tokens[1:] for i in scored])).to(model.device),
            head_chunk,
        )
        flat = flat_M.cpu().numpy()
    ends = np.cumsum([len(r) for r in rows])
    for i, part in zip(scored, np.split(flat, ends[:-1]) if scored else [], strict=True):
        results[i] = np.concatenate([np.full(1, np.nan, np.float32), part])
    return results


def _prompt_topk(
    model: BaseModel, stream: PackedStream, hidden_NE: Tensor, prompts: Sequence[Prompt], head_chunk: int
) -> list[TopkLogprobs | None]:
    """The likeliest tokens at every position 1 .. P-1 of the prompts that ask; position 0 is empty."""
    results: list[TopkLogprobs | None] = [None] * len(prompts)
    asking = [i for i, prompt in enumerate(prompts) if prompt.topk]
    if not asking:
        return results
    # Rows that several prompts share are ranked once.
    rows = np.unique(np.concatenate([stream.rows[i][:-1] for i in asking]))
    widest = min(max(prompts[i].topk for i in asking), model.head.weight.shape[0])
    ids_RK, logprobs_RK = np.empty((0, widest), np.int64), np.empty((0, widest), np.float32)
    if len(rows):
        rows_R = torch.from_numpy(rows).to(model.device)
        ids, logprobs = topk_logprobs(
            model, hidden_NE.index_select(0, rows_R), _of_rows(stream.adapters, rows_R), widest, head_chunk
        )
        ids_RK, logprobs_RK = ids.cpu().numpy(), logprobs.cpu().numpy()
    for i in asking:
        k = min(prompts[i].topk, widest)
        places = np.searchsorted(rows, stream.rows[i][:-1])
        token_ids = np.zeros((len(prompts[i].tokens), k), np.int32)
        values = np.full((len(prompts[i].tokens), k), EMPTY_SLOT_LOGPROB, np.float32)
        token_ids[1:], values[1:] = ids_RK[places, :k], logprobs_RK[places, :k]
        results[i] = TopkLogprobs(token_ids, values)
    return results


def _of_rows(adapters: Sequence[AdapterRows], rows_R: Tensor) -> list[AdapterRows]:
    """The same assignment for a selection of the rows."""
    selected: list[AdapterRows] = []
    for assigned in adapters:
        if assigned.rows is None:
            selected.append(assigned)
            continue
        inside = torch.nonzero(torch.isin(rows_R, assigned.rows)).squeeze(1)
        if len(inside):
            selected.append(AdapterRows(assigned.adapter, inside))
    return selected
