"""Cutting sequences into passes of bounded size.

Sequences that share a prefix stay together where they fit, since a pass computes a shared
prefix once.
"""

from __future__ import annotations

from collections.abc import Sequence

from tinkerlite_server.engine.lora import Adapter
from tinkerlite_server.engine.protocols import Ids
from tinkerlite_server.engine.streams import prefix_groups, stream_order


def most_rows(shared: int, max_tokens: int) -> int:
    """The limit of a pass that begins with sequences behind this shared prefix: a long one is extra.

    Of more than half a pass, it would leave its sequences little room, and be computed anew for every few
    of them.
    """
    return max_tokens + (shared if shared > max_tokens // 2 else 0)


def cut_passes(
    sequences: Sequence[Ids], adapters: Sequence[Adapter | None], max_tokens: int
) -> list[list[int]]:
    """Indices of the sequences, in passes of at most `max_tokens` rows, a shared prefix counted once.

    A longer sequence is alone. Behind a long prefix a pass has more rows, as `most_rows` says.
    """
    passes: list[list[int]] = [[]]
    rows = 0
    for members, shared in prefix_groups(sequences, adapters, stream_order(sequences, adapters)):
        own = [len(sequences[member]) - shared for member in members]
        if passes[-1] and rows + shared + sum(own) > max_tokens:
            passes.append([])
            rows = 0
        rows += shared
        for member, added in zip(members, own, strict=True):
            if passes[-1] and rows + added > most_rows(shared, max_tokens):
                passes.append([])
                rows = shared
            passes[-1].append(member)
            rows += added
    return [members for members in passes if members]
