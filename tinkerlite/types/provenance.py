"""Where the tokens of a datum come from: runs of a sample's prompt and of what was sampled.

For losses of other backends that look up how tokens were sampled; the reference server reads
over them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinkerlite.errors import InvalidDatum


@dataclass(frozen=True, kw_only=True)
class ProvenanceSpan:
    """A run of `length` tokens from position `offset` on. `sequence_id` is that of a SampledSequence.

    Raises:
        InvalidDatum: no sequence, or a number below 0.
    """

    sequence_id: str
    offset: int = 0
    length: int

    def __post_init__(self) -> None:
        if not self.sequence_id or self.offset < 0 or self.length < 0:
            raise InvalidDatum(f"{self!r} needs a sequence_id, and an offset and a length of 0 or more")


@dataclass(frozen=True, kw_only=True)
class PromptProvenanceSpan(ProvenanceSpan):
    """A run of the prompt that a sequence was sampled from."""


@dataclass(frozen=True, kw_only=True)
class SampledProvenanceSpan(ProvenanceSpan):
    """A run of the tokens that were sampled."""


ProvenanceSpans = list[PromptProvenanceSpan | SampledProvenanceSpan]
"""Consecutive runs that cover all of a datum's positions."""
