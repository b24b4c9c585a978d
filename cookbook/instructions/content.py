"""What it says: words to use or to avoid, letters, placeholders, a postscript, the language.

Words to use count inside of others, in any case ("car" is in "Cars"), as in IFEval; words to avoid are whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from cookbook.instructions.instruction import Relation, holds


@dataclass(frozen=True)
class Keywords:
    """All of these words occur."""

    keywords: tuple[str, ...]

    def is_followed(self, reply: str) -> bool:
        """Every one, at least once."""
        return all(keyword.lower() in reply.lower() for keyword in self.keywords)


@dataclass(frozen=True)
class KeywordFrequency:
    """A word occurs so many times."""

    keyword: str
    count: int
    relation: Relation = "at least"

    def is_followed(self, reply: str) -> bool:
        """By the number of occurrences, without overlaps."""
        return holds(reply.lower().count(self.keyword.lower()), self.relation, self.count)


@dataclass(frozen=True)
class ForbiddenWords:
    """None of these words occurs."""

    words: tuple[str, ...]

    def is_followed(self, reply: str) -> bool:
        """As whole words, in any case."""
        return not any(
            re.search(rf"(?<!\w){re.escape(word)}(?!\w)", reply, re.IGNORECASE) for word in self.words
        )


@dataclass(frozen=True)
class LetterFrequency:
    """A letter, or another sign, occurs so many times."""

    letter: str
    count: int
    relation: Relation = "at least"

    def is_followed(self, reply: str) -> bool:
        """In any case."""
        return holds(reply.lower().count(self.letter.lower()), self.relation, self.count)


@dataclass(frozen=True)
class Placeholders:
    """At least so many placeholders in square brackets, such as [address]."""

    count: int

    def is_followed(self, reply: str) -> bool:
        """Empty brackets hold no place."""
        return len(re.findall(r"\[[^\[\]\n]+\]", reply)) >= self.count


@dataclass(frozen=True)
class Postscript:
    """A postscript after its marker, P.S. or P.P.S."""

    marker: str = "P.S."

    def is_followed(self, reply: str) -> bool:
        """The marker in any case, blanks after its points allowed; something has to follow it."""
        letters = [letter for letter in self.marker.lower() if letter.isalnum()]
        pattern = r"(?<!\w)(?<!\w\.)" + r"\.?\s?".join(map(re.escape, letters)) + r"(?!\w)\W*\w"
        return re.search(pattern, reply.lower()) is not None


@dataclass(frozen=True)
class RepeatedPrompt:
    """The reply first repeats a text word for word."""

    prompt: str

    def is_followed(self, reply: str) -> bool:
        """Case and blanks around it do not matter."""
        return reply.strip().lower().startswith(self.prompt.strip().lower())


@dataclass(frozen=True)
class Language:
    """The reply is in a language, named by its ISO 639-1 code."""

    code: str

    def is_followed(self, reply: str) -> bool:
        """As `langdetect` finds, the library that IFEval asks; a text without any letters is in none."""
        # Only this check needs the library, which has no types, and its profiles take a moment to load.
        langdetect: Any = import_module("langdetect")
        langdetect.DetectorFactory.seed = 0  # otherwise it draws at random
        try:
            found = langdetect.detect(reply)
        except langdetect.LangDetectException:
            return False
        return bool(found == self.code)
