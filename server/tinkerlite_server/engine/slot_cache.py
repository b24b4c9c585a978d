"""The slot cache: keys and values of the samples that are decoding, and the pass that reads them.

A sample has one slot, and running samples always have slots 0 .. B-1, so that decode attention
reads `cache[:B, :, :longest]` as it lies: nothing is gathered. When a sample ends, the last one
moves into its slot. The cache grows, in slots and in length, by doubling.

Dimensions in names: S slots, B running samples, P prompt tokens, G key-value heads, H query
heads, R = H / G, C capacity (tokens a slot can hold), L longest running sequence, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tinkerlite_server.engine.attention import KeysValues
from tinkerlite_server.engine.base_model import BaseModel
from tinkerlite_server.engine.lora import AdapterRows

_STEP = 64
"""Capacities are multiples of this many tokens."""


class SlotCache:
    """Keys and values by layer, each (S, G, C, D).

    Args:
        max_slots: most samples at once.
        max_bytes: the cache stays within this, unless a single sample needs more.
    """

    def __init__(self, model: BaseModel, max_slots: int, max_bytes: int) -> None:
        self._kv_heads, self._head_size = model.kv_heads, model.head_size
        self._device, self._dtype = model.device, model.dtype
        self._max_slots, self._max_bytes = max_slots, max_bytes
        self._token_bytes = 2 * model.layers * model.kv_heads * model.head_size * model.dtype.itemsize
        self.slots = 0
        self.capacity = 0
        self.keys: list[Tensor] = [self._zeros(0, 0) for _ in range(model.layers)]
        self.values: list[Tensor] = [self._zeros(0, 0) for _ in range(model.layers)]

    def most_samples(self, longest: int) -> int:
        """How many samples may run at once when the longest of them ends with this many tokens."""
        by_bytes = self._max_bytes // (self._token_bytes * _rounded(longest))
        return max(1, min(self._max_slots, by_bytes))

    def bytes_of(self, tokens: int) -> int:
        """What a copy of this many tokens takes."""
        return self._token_bytes * tokens

    def reserve(self, slots: int, tokens: int) -> None:
        """Make room for this many slots of this many tokens; what slots hold is kept."""
        if slots <= self.slots and tokens <= self.capacity:
            return
        roomy_slots = min(self._max_slots, 2 * self.slots) if slots > self.slots else self.slots
        roomy_slots = max(roomy_slots, slots)
        roomy_tokens = _rounded(max(tokens, 2 * self.capacity)) if tokens > self.capacity else self.capacity
        if roomy_slots * roomy_tokens * self._token_bytes > self._max_bytes:
            roomy_slots, roomy_tokens = slots, _rounded(tokens)
        # A layer at a time, so that old and new exist side by side for one layer only. Should memory
        # run out half-way, what all layers have room for is the smaller of both.
        self.slots, self.capacity = min(self.slots, roomy_slots), min(self.capacity, roomy_tokens)
        for layers in (self.keys, self.values):
            for layer, old in enumerate(layers):
                new = self._zeros(roomy_slots, roomy_tokens)
                kept = old[:roomy_slots, :, :roomy_tokens]
                new[: kept.shape[0], :, : kept.shape[2]] = kept
                layers[layer] = new
        self.slots, self.capacity = roomy_slots, roomy_tokens

    def write_prompt(self, first_slot: int, count: int, prompt: KeysValues) -> None:
        """Copy one prompt's keys and values into `count` slots."""
        slots, tokens = slice(first_slot, first_slot + count), prompt.tokens
        for layer in range(len(self.keys)):
            self.keys[layer][slots, :, :tokens] = prompt.keys[layer]
            self.values[layer][slots, :, :tokens] = prompt.values[layer]

    def read(self, slot: int, tokens: int) -> KeysValues:
        """A copy of a slot's first tokens."""
        return KeysValues(
            [layer[slot, :, :tokens].clone() for layer in self.keys],
            [layer[slot, :, :tokens].clone() for layer in self.values],
        )

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of one slot into another."""
        for layer in (*self.keys, *self.values):
            layer[target, :, :tokens] = layer[source, :, :tokens]

    def clear(self, slot: int) -> None:
        """Zero a slot whose sample failed: a masked NaN still spoils the sum it is masked in."""
        for layer in (*self.keys, *self.values):
            layer[slot].zero_()

    def _zeros(self, slots: int, tokens: int) -> Tensor:
        # Zeroed, not empty: see `clear`.
        return torch.zeros(
            slots, self._kv_heads, tokens, self._head_size, dtype=self._dtype, device=self._device
        )


def _rounded(tokens: int) -> int:
    return -(-tokens // _STEP) * _STEP


class DecodeStream:
    """One new token for each of B samples: row b is the sample in slot b.

    Args:
        tokens: each sample's newest token, not yet in the cache.
        positions: their places in their sequences; the cache has room for them.
        adapters: which rows use which adapter.
    """

    def __init__(
        self,
        cache: SlotCache,
        tokens: Sequence[int],
        positions: Sequence[int],
        adapters: Sequence[AdapterRows],
    ) -> None:
        device = cache.keys[0].device
        self.input_ids_N = torch.tensor(tokens, device=device)
        self.position_ids_N = torch.tensor(positions, device=device)
        self.adapters = adapters
        self._cache = cache
        self._rows = torch.arange(len(tokens), device=device)
        self._longest = max(positions) + 1
        self._mask: Tensor | None = None
        if min(positions) < max(positions):
            if device.type == "cuda":  # its kernels want masks whose rows are multiples of 8, or copy them
                self._longest = _rounded(self._longest)
            beyond = torch.arange(self._longest, device=device) > self.position_ids_N[:, None]
            mask = torch.zeros(beyond.shape, dtype=cache.keys[0].dtype, device=device)
            self._mask = mask.masked_fill_(beyond, -torch.inf)[:, None, None, :]

    def attend(self, layer: int, q_HND: Tensor, k_GND: Tensor, v_GND: Tensor, scaling: float) -> Tensor:
        """Store this token's key and value, then look at the sample's own slot."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys[self._rows, :, self.position_ids_N] = k_GND.transpose(0, 1)
        values[self._rows, :, self.position_ids_N] = v_GND.transpose(0, 1)
        samples, kv_heads = len(self._rows), k_GND.shape[0]
        # Query heads of one group are as many queries of its one key head: no key is repeated.
        q_BGRD = q_HND.transpose(0, 1).unflatten(1, (kv_heads, -1))
        output_BGRD = F.scaled_dot_product_attention(
            q_BGRD,
            keys[:samples, :, : self._longest],
            values[:samples, :, : self._longest],
            attn_mask=self._mask,
            scale=scaling,
        )
        return output_BGRD.flatten(1, 2)
