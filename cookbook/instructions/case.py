"""Letters and marks: upper case, lower case, no commas."""

from __future__ import annotations

from dataclasses import dataclass

from cookbook.instructions.instruction import Relation, holds
from cookbook.instructions.texts import words


@dataclass(frozen=True)
class Uppercase:
    """Capital letters alone."""

    def is_followed(self, reply: str) -> bool:
        """Needs letters, all of them capital. Which language they are of is not asked."""
        return reply.isupper()


@dataclass(frozen=True)
class Lowercase:
    """No capital letters."""

    def is_followed(self, reply: str) -> bool:
        """Needs letters, none of them capital. Which language they are of is not asked."""
        return reply.islower()


@dataclass(frozen=True)
class CapitalWords:
    """So many words in capital letters alone."""

    count: int
    relation: Relation = "at least"

    def is_followed(self, reply: str) -> bool:
        """By words; "I" and "A" are such words."""
        return holds(sum(word.isupper() for word in words(reply)), self.relation, self.count)


@dataclass(frozen=True)
class NoCommas:
    """Not a single comma."""

    def is_followed(self, reply: str) -> bool:
        """Those of other scripts count too."""
        return not any(comma in reply for comma in ",，、،")
