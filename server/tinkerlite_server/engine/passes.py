"""Cutting examples into passes of bounded size.

Examples that share a prefix stay together where they fit, since a pass computes a shared
prefix once.
"""

from __future__ import annotations

from collections.abc import Sequence

from tinkerlite_server.engine.lora import Adapter
from tinkerlite_server.engine.protocols import Ids
from tinkerlite_server.engine.streams import MIN_SHARED_TOKENS, common_prefix, stream_order


def cut_passes(
    sequences: Sequence[Ids], adapters: Sequence[Adapter | None], max_tokens: int
) -> list[list[int]]:
    """Indices of the sequences, in passes of at most `max_tokens` rows; a longer one is alone.

    A sequence's cost is what it adds to its predecessor: its length less their common prefix.
    """
    passes: list[list[int]] = []
    rows = 0
    for index in stream_order(sequences, adapters):
        length = len(sequences[index])
        added = length
        if passes and adapters[passes[-1][-1]] is adapters[index]:
            common = common_prefix(sequences[passes[-1][-1]], sequences[index])
            added = length - common if common >= MIN_SHARED_TOKENS else length
        if passes and rows + added <= max_tokens:
            passes[-1].append(index)
            rows += added
        else:
            passes.append([index])
            rows = length
    return passes
