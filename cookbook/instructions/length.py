"""How long: words, sentences, paragraphs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cookbook.instructions.instruction import Relation, holds
from cookbook.instructions.texts import DIVIDER, paragraphs, sentences, split_inside, words


@dataclass(frozen=True)
class WordCount:
    """So many words."""

    count: int
    relation: Relation = "at least"

    def is_followed(self, reply: str) -> bool:
        """By the number of words."""
        return holds(len(words(reply)), self.relation, self.count)


@dataclass(frozen=True)
class SentenceCount:
    """So many sentences."""

    count: int
    relation: Relation = "at least"

    def is_followed(self, reply: str) -> bool:
        """By the number of sentences."""
        return holds(len(sentences(reply)), self.relation, self.count)


@dataclass(frozen=True)
class ParagraphCount:
    """Exactly so many paragraphs, with the divider *** between them."""

    count: int

    def is_followed(self, reply: str) -> bool:
        """By the parts between dividers, none of which may be empty."""
        parts = split_inside(reply, DIVIDER)
        return parts is not None and len(parts) == self.count


@dataclass(frozen=True)
class ParagraphOpening:
    """Exactly so many paragraphs between blank lines, one of which begins with a word."""

    paragraphs: int
    nth: int
    """Counted from 1."""
    word: str

    def is_followed(self, reply: str) -> bool:
        """Case and marks around the word do not matter."""
        parts = paragraphs(reply)
        if len(parts) != self.paragraphs or not 1 <= self.nth <= len(parts):
            return False
        opening = re.match(r"[^\w]*(\w+)", parts[self.nth - 1])
        return opening is not None and opening[1].lower() == self.word.lower()
