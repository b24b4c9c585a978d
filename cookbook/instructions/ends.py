"""How it begins and ends."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Opening:
    """The reply begins with a phrase."""

    phrase: str

    def is_followed(self, reply: str) -> bool:
        """Case and quotation marks around the reply do not matter."""
        return reply.strip().strip('"').lower().startswith(self.phrase.strip().lower())


@dataclass(frozen=True)
class Ending:
    """The reply ends with a phrase."""

    phrase: str

    def is_followed(self, reply: str) -> bool:
        """Case and quotation marks around the reply do not matter; nothing may follow."""
        return reply.strip().strip('"').lower().endswith(self.phrase.strip().lower())


@dataclass(frozen=True)
class Quotation:
    """The whole reply stands in double quotation marks."""

    def is_followed(self, reply: str) -> bool:
        """With something between them."""
        text = reply.strip()
        return len(text) > 2 and text.startswith('"') and text.endswith('"')
