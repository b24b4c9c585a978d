"""Reading prompts: one packed pass over several, for what comes next and for what was asked about them.

A pass gives, per prompt, the last hidden state (from which first tokens are drawn), the keys
and values if samples go on decoding from it, and the answers to what its requests ask about it
(scoring.py). Beginnings that prompts share are computed once (streams.py). Knows nothing about
slots or queues.

Dimensions in names: N rows of the stream, P tokens of one prompt, E hidden size, G key-value
heads, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinkerlite_server.engine.attention import KeysValues
from tinkerlite_server.engine.base_model import BaseModel
from tinkerlite_server.engine.lora import Adapter
from tinkerlite_server.engine.passes import most_rows
from tinkerlite_server.engine.protocols import Ids, SampleWork
from tinkerlite_server.engine.scoring import PromptScores, score_prompts
from tinkerlite_server.engine.streams import PackedStream, prefix_groups, stream_order


@dataclass(frozen=True, eq=False, kw_only=True)
class Prompt:
    """A prompt, under one adapter, and the requests that it is of."""

    tokens: Ids
    adapter: Adapter | None
    keep: bool
    """Whether samples will go on from its keys and values."""
    works: Sequence[SampleWork]
    past: KeysValues | None = None
    """What is known of its first tokens; nothing is asked about what those predict."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PromptState:
    """Where one prompt leads: what its samples start from."""

    last_hidden_E: Tensor
    keys_values: KeysValues | None


@dataclass(frozen=True, eq=False)
class ReadPrompt:
    """What reading a prompt came to."""

    state: PromptState
    scores: Sequence[PromptScores]
    """One a request, in the order of `Prompt.works`."""


class PrefillStream(PackedStream):
    """A packed stream that keeps each layer's keys and values."""

    def __init__(
        self,
        sequences: Sequence[Ids],
        adapters: Sequence[Adapter | None],
        device: torch.device,
        *,
        pasts: Mapping[int, KeysValues],
    ) -> None:
        super().__init__(sequences, adapters, device, pasts=pasts)
        self._pasts = pasts
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def attend(self, layer: int, q_HND: Tensor, k_GND: Tensor, v_GND: Tensor, scaling: float) -> Tensor:
        """As a packed stream does."""
        self._keys[layer], self._values[layer] = k_GND, v_GND
        return super().attend(layer, q_HND, k_GND, v_GND, scaling)

    def sequence_keys_values(self, index: int) -> KeysValues:
        """One sequence's keys and values; copies, so the pass can be freed."""
        past = self._pasts.get(index)
        known = 0 if past is None else past.tokens
        rows = torch.from_numpy(self.rows[index][known:]).to(self.input_ids_N.device)
        # Not `index_select`: along any but the first dimension it copies all rows of the pass first.
        layers = range(len(self._keys))
        read = KeysValues(
            [self._keys[layer][:, rows] for layer in layers],
            [self._values[layer][:, rows] for layer in layers],
        )
        if past is None:
            return read
        both = [past.and_then(layer, read.keys[layer], read.values[layer]) for layer in layers]
        return KeysValues([keys for keys, _ in both], [values for _, values in both])


def read_prompts(model: BaseModel, prompts: Sequence[Prompt], head_chunk: int) -> list[ReadPrompt]:
    """One pass over all of them.

    Args:
        head_chunk: most rows whose full-vocabulary logits exist at once.
    """
    sequences = [prompt.tokens for prompt in prompts]
    adapters = [prompt.adapter for prompt in prompts]
    pasts = {index: prompt.past for index, prompt in enumerate(prompts) if prompt.past is not None}
    if any(prompt.keep for prompt in prompts):
        stream = PrefillStream(sequences, adapters, model.device, pasts=pasts)
    else:
        stream = PackedStream(sequences, adapters, model.device, pasts=pasts)
    hidden_NE = model.hidden(stream)
    last_rows = torch.tensor([int(rows[-1]) for rows in stream.rows], device=model.device)
    last_hidden = hidden_NE.index_select(0, last_rows).unbind(0)
    works = [work for prompt in prompts for work in prompt.works]
    rows = [stream.rows[index] for index, prompt in enumerate(prompts) for _ in prompt.works]
    scores = iter(score_prompts(model, hidden_NE, stream.adapters, works, rows, head_chunk))
    read: list[ReadPrompt] = []
    for index, prompt in enumerate(prompts):
        kept = None
        if prompt.keep and isinstance(stream, PrefillStream):
            kept = stream.sequence_keys_values(index)
        state = PromptState(last_hidden_E=last_hidden[index], keys_values=kept)
        read.append(ReadPrompt(state, [next(scores) for _ in prompt.works]))
    return read


def choose_prompts(
    sequences: Sequence[Ids], adapters: Sequence[Adapter | None], known: Mapping[int, int], max_tokens: int
) -> list[int]:
    """Indices of those to read in the next pass: the first, what shares its beginning, then others in order.

    The pass has at most `max_tokens` rows, a shared beginning counted once, or as `most_rows` says; a longer
    prompt is read alone. What is left out comes no later for it: the first of them is first next time.

    Args:
        known: by index, how many of its first tokens need not be read.
    """
    groups = prefix_groups(sequences, adapters, stream_order(sequences, adapters), alone=known)
    chosen: list[int] = []
    used = 0
    for members, shared in sorted(groups, key=lambda group: min(group[0])):
        limit = max_tokens if chosen else most_rows(shared, max_tokens)
        used += shared
        for member in sorted(members):
            own = len(sequences[member]) - shared - known.get(member, 0)
            if chosen and used + own > limit:
                return chosen
            chosen.append(member)
            used += own
    return chosen
