"""What an instruction is: a check of a reply's text."""

from __future__ import annotations

from typing import Literal, Protocol

Relation = Literal["at least", "less than", "exactly"]


class Instruction(Protocol):
    """Something asked of a reply. Implementations are frozen dataclasses: equal fields, equal instruction."""

    def is_followed(self, reply: str) -> bool:
        """Whether a reply, taken as it is, does what was asked."""
        ...


def holds(number: int, relation: Relation, bound: int) -> bool:
    """Whether "number relation bound" is true.

    Raises:
        ValueError: an unknown relation.
    """
    if relation == "at least":
        return number >= bound
    if relation == "less than":
        return number < bound
    if relation == "exactly":
        return number == bound
    raise ValueError(f"unknown relation {relation!r}; one of 'at least', 'less than', 'exactly'")
