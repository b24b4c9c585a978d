"""Streams: what one pass through a model reads, as rows of real tokens without padding.

A stream tells the model its tokens, their positions and their adapters, and answers the one
question that depends on structure: what attends to what. Models call `Stream.attend` through
transformers' attention interface (base_model.py); linear layers see rows only.

`PackedStream` holds whole sequences. Sequences that begin alike share the rows of their
common prefix: it is computed once, and gradients of all of them flow through it. Exact,
since a token's state depends on the tokens before it and on nothing else.

Dimensions in names: N rows of the stream, H query heads, G key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinkerlite_server.engine.attention import Block, BlockAttention, KeysValues
from tinkerlite_server.engine.lora import Adapter, AdapterRows, adapter_rows
from tinkerlite_server.engine.protocols import Ids

MIN_SHARED_TOKENS = 4
"""Shorter common prefixes are not worth a mask."""
PAIRS_PER_TOKEN = 2048
"""Masked pairs that cost as much as one token's linear layers: about 6 x hidden size of a small model.

A pair costs 4 x hidden FLOP a layer, a token 24 x hidden^2; half, since both triangles are computed.
"""
MAX_BLOCK_ROWS = 8192
"""Most rows in one masked block: its mask has as many bytes as it has pairs."""


class Stream(Protocol):
    """One pass: N rows."""

    @property
    def input_ids_N(self) -> Tensor:
        """Token ids (N,)."""
        ...

    @property
    def position_ids_N(self) -> Tensor:
        """Positions in their sequences (N,)."""
        ...

    @property
    def adapters(self) -> Sequence[AdapterRows]:
        """Which rows use which adapter."""
        ...

    def attend(self, layer: int, q_HND: Tensor, k_GND: Tensor, v_GND: Tensor, scaling: float) -> Tensor:
        """Attention output (N, H, D) of this layer."""
        ...


class PackedStream:
    """Whole sequences, packed; `rows[i][t]` is the stream row of token t of sequence i.

    Args:
        sequences: token ids, each (T_i,), none empty.
        adapters: one per sequence, or None for the bare base model.
        pasts: by sequence, what is known of its first tokens, never of all. Those have no rows (-1), and
            such a sequence shares none.
        share_prefixes: off only to compare with the unshared twin.
    """

    def __init__(
        self,
        sequences: Sequence[Ids],
        adapters: Sequence[Adapter | None],
        device: torch.device,
        *,
        pasts: Mapping[int, KeysValues] | None = None,
        share_prefixes: bool = True,
    ) -> None:
        pasts = pasts or {}
        order = stream_order(sequences, adapters)
        groups = [([i], 0) for i in order]
        if share_prefixes:
            groups = prefix_groups(sequences, adapters, order, alone=pasts)
        self.rows: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(sequences)
        blocks: list[Block] = []
        tokens: list[Ids] = []
        positions: list[NDArray[np.int64]] = []
        per_row: list[tuple[Adapter | None, int]] = []
        start = 0
        for members, shared in groups:
            first, past = sequences[members[0]], pasts.get(members[0])
            known = 0 if past is None else past.tokens
            pieces, places = [first[:shared]], [np.arange(shared)]
            owners = [np.full(shared, -1)]
            end = start + shared
            for member in members:
                before = known + shared
                own = sequences[member][before:]
                self.rows[member] = np.concatenate(
                    [np.full(known, -1), np.arange(start, start + shared), np.arange(end, end + len(own))]
                )
                pieces.append(own)
                places.append(np.arange(before, before + len(own)))
                owners.append(np.full(len(own), member))
                end += len(own)
            tokens += pieces
            positions += places
            per_row.append((adapters[members[0]], end - start))
            mask = None
            if len(members) > 1:
                mask = _tree_mask(np.concatenate(owners), np.concatenate(places)).to(device)
            blocks.append(Block(start, end, mask, past))
            start = end
        self.input_ids_N = torch.from_numpy(np.concatenate(tokens)).to(device)
        self.position_ids_N = torch.from_numpy(np.concatenate(positions)).to(device)
        self.adapters = adapter_rows(per_row, device)
        self._attention = BlockAttention(blocks)

    def attend(self, layer: int, q_HND: Tensor, k_GND: Tensor, v_GND: Tensor, scaling: float) -> Tensor:
        """Each block by itself."""
        return self._attention(q_HND, k_GND, v_GND, scaling, layer)


def _tree_mask(owners: NDArray[np.int64], positions: NDArray[np.int64]) -> Tensor:
    """True where row i may look at row j: j not after i, and j in i's own sequence or in the prefix (-1)."""
    same = (owners[:, None] == owners[None, :]) | (owners[None, :] == -1)
    return torch.from_numpy(same & (positions[None, :] <= positions[:, None]))


def stream_order(sequences: Sequence[Ids], adapters: Sequence[Adapter | None]) -> list[int]:
    """Indices of the sequences so that one adapter's are together, and like beginnings are neighbours."""
    first_use: dict[int, int] = {}
    for adapter in adapters:
        first_use.setdefault(id(adapter), len(first_use))
    # Big-endian bytes of non-negative numbers sort as the numbers do.
    keys = [
        (first_use[id(adapter)], ids.astype(">i8").tobytes())
        for ids, adapter in zip(sequences, adapters, strict=True)
    ]
    return sorted(range(len(sequences)), key=keys.__getitem__)


def prefix_groups(
    sequences: Sequence[Ids],
    adapters: Sequence[Adapter | None],
    order: Sequence[int],
    alone: Collection[int] = (),
) -> list[tuple[list[int], int]]:
    """Neighbours in `order` that share a prefix, as (members, prefix length); alone means (one, 0).

    Greedy: a sequence joins the group before it if that saves rows, and more than the masked
    attention between its own rows and the others' costs. Every member keeps at least one row of
    its own (its last), so that equal sequences stay apart. Those in `alone` share nothing.
    """
    groups: list[tuple[list[int], int]] = []
    for index in order:
        if groups and index not in alone and groups[-1][0][-1] not in alone:
            members, shared = groups[-1]
            last = members[-1]
            common = 0
            if adapters[last] is adapters[index]:
                common = common_prefix(sequences[last], sequences[index])
                common = min(common, len(sequences[last]) - 1, len(sequences[index]) - 1)
                common = min(common, shared) if len(members) > 1 else common
            saved, would_save = shared * (len(members) - 1), common * len(members)
            rows = common + sum(len(sequences[m]) - common for m in (*members, index))
            pairs = rows * (len(sequences[index]) - common)
            worthwhile = would_save > saved and pairs <= PAIRS_PER_TOKEN * common
            if common >= MIN_SHARED_TOKENS and worthwhile and rows <= MAX_BLOCK_ROWS:
                groups[-1] = ([*members, index], common)
                continue
        groups.append(([index], 0))
    return groups


def common_prefix(left: Ids, right: Ids) -> int:
    """How many tokens two sequences share from the start."""
    length = min(len(left), len(right))
    differs = left[:length] != right[:length]
    return int(np.argmax(differs)) if differs.any() else length
