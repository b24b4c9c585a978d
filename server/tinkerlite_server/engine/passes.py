"""Cutting sequences into passes of bounded size.

Sequences that share a prefix stay together where they fit, since a pass computes a shared
prefix once.
"""

from __future__ import annotations

from collections.abc import Sequence

from tinkerlite_server.engine.lora import Adapter
from tinkerlite_server.engine.protocols import Ids
from tinkerlite_server.engine.streams import prefix_groups, stream_order


def counted(shared: int, max_tokens: int) -> int:
    """Rows of a shared prefix that count against a pass's limit: none of one longer than half a pass.

    It would leave its sequences little room, and be computed anew for every few of them. A pass has at most
    so many rows more.
    """
    return shared if shared <= max_tokens // 2 else 0


def cut_passes(
    sequences: Sequence[Ids], adapters: Sequence[Adapter | None], max_tokens: int
) -> list[list[int]]:
    """Indices of the sequences, in passes of at most `max_tokens` rows; a longer one is alone.

    A prefix that neighbours share is one group's rows, and counts as `counted` says.
    """
    passes: list[list[int]] = [[]]
    rows = 0
    for members, shared in prefix_groups(sequences, adapters, stream_order(sequences, adapters)):
        prefix = counted(shared, max_tokens)
        own = [len(sequences[member]) - shared for member in members]
        if passes[-1] and rows + prefix + sum(own) > max_tokens:
            passes.append([])
            rows = 0
        rows += prefix
        for member, added in zip(members, own, strict=True):
            if passes[-1] and rows + added > max_tokens:
                passes.append([])
                rows = prefix
            passes[-1].append(member)
            rows += added
    return [members for members in passes if members]
