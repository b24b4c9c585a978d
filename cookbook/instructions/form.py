"""How it is laid out: lists, highlights, sections, a title, JSON, two replies, one of some phrases."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from cookbook.instructions.texts import bullets, numbered_lines, split_inside


@dataclass(frozen=True)
class BulletCount:
    """Exactly so many bullet points."""

    count: int

    def is_followed(self, reply: str) -> bool:
        """By lines that begin with * or -."""
        return bullets(reply) == self.count


@dataclass(frozen=True)
class NumberedCount:
    """Exactly so many numbered lines."""

    count: int

    def is_followed(self, reply: str) -> bool:
        """By lines that begin with a number and a point or bracket."""
        return numbered_lines(reply) == self.count


@dataclass(frozen=True)
class Highlights:
    """At least so many parts *highlighted* with asterisks."""

    count: int

    def is_followed(self, reply: str) -> bool:
        """Single or double asterisks around something within a line."""
        marked = re.findall(r"\*\*[^*\n]+\*\*|\*[^*\n]+\*", reply)
        return sum(bool(part.strip("* ")) for part in marked) >= self.count


@dataclass(frozen=True)
class Sections:
    """At least so many sections, each headed by a word and its number."""

    count: int
    word: str = "Section"

    def is_followed(self, reply: str) -> bool:
        """By headings, the word in exactly the given case."""
        return len(re.findall(rf"(?<!\w){re.escape(self.word)}\s?\d+", reply)) >= self.count


@dataclass(frozen=True)
class Json:
    """The whole reply is JSON."""

    def is_followed(self, reply: str) -> bool:
        """Markdown's fence around it is allowed."""
        fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", reply.strip(), re.DOTALL | re.IGNORECASE)
        try:
            json.loads(fenced[1] if fenced else reply)
        except (ValueError, RecursionError):
            return False
        return True


@dataclass(frozen=True)
class Title:
    """A title in double angular brackets, <<like this>>."""

    def is_followed(self, reply: str) -> bool:
        """Somewhere, on one line, and not empty."""
        return any(title.strip(" <>") for title in re.findall(r"<<([^\n]+?)>>", reply))


@dataclass(frozen=True)
class OneOf:
    """The reply contains one of these phrases."""

    options: tuple[str, ...]

    def is_followed(self, reply: str) -> bool:
        """Exactly as written."""
        return any(option in reply for option in self.options)


@dataclass(frozen=True)
class OnlyOneOf:
    """The reply is one of these phrases and nothing else."""

    options: tuple[str, ...]

    def is_followed(self, reply: str) -> bool:
        """Case, blanks around it and a closing point do not matter."""
        said = reply.strip().removesuffix(".").lower()
        return said in {option.lower().removesuffix(".") for option in self.options}


@dataclass(frozen=True)
class TwoReplies:
    """Two different replies, with ****** between them."""

    def is_followed(self, reply: str) -> bool:
        """By the parts around the divider."""
        parts = split_inside(reply, re.escape("*" * 6))
        return parts is not None and len(parts) == 2 and parts[0] != parts[1]
