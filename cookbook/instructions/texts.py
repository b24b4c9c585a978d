"""Texts taken apart: words, sentences, paragraphs, lines of lists."""

from __future__ import annotations

import re

_SENTENCE_END = re.compile(r"[.!?…]+([\"'”’)\]*_]*)(?=\s|$)")
# fmt: off
_ABBREVIATIONS = frozenset(
    ("mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "vs", "approx", "e.g", "i.e", "u.s", "p.s")
)
# fmt: on
_LIST_NUMBER = re.compile(r"(?:^|\n)[ \t]*\d+$")
_BULLET = re.compile(r"^[ \t]*(?:\*(?!\*)|-)[ \t]*\S", re.MULTILINE)
_NUMBERED = re.compile(r"^[ \t]*\d+[.)][ \t]*\S", re.MULTILINE)
DIVIDER = re.compile(r"\s*\*{3}\s*")
"""Markdown's divider, with the blanks around it."""


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores, as IFEval counts them: "don't" is two."""
    return re.findall(r"\w+", text)


def sentences(text: str) -> list[str]:
    """Sentences by their closing marks; so are what follows the last mark and what ends at a blank line.

    Marks after abbreviations, initials and the numbers of a list do not end a sentence, nor do those
    inside a quotation that goes on in lower case.
    """
    return [sentence for part in re.split(r"\n\s*\n", text) for sentence in _sentences_of(part)]


def paragraphs(text: str) -> list[str]:
    """Parts between blank lines, without empty ones."""
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def bullets(text: str) -> int:
    """Lines that begin with `*` or `-` and say something; `**bold**` is no bullet."""
    return len(_BULLET.findall(text))


def numbered_lines(text: str) -> int:
    """Lines that begin with a number and `.` or `)` and say something."""
    return len(_NUMBERED.findall(text))


def split_inside(text: str, divider: re.Pattern[str] | str) -> list[str] | None:
    """Parts between dividers, stripped; nothing before the first or after the last one is fine.

    None if a part in between is empty: then the text is not divided into what was asked.
    """
    parts = [part.strip() for part in re.split(divider, text)]
    if any(not part for part in parts[1:-1]):
        return None
    return [part for part in parts if part]


def _sentences_of(part: str) -> list[str]:
    found: list[str] = []
    start = 0
    for mark in _SENTENCE_END.finditer(part):
        if _ends_here(part, mark):
            found.append(part[start : mark.end()])
            start = mark.end()
    found.append(part[start:])
    return [sentence.strip() for sentence in found if re.search(r"\w", sentence)]


def _ends_here(part: str, mark: re.Match[str]) -> bool:
    before, following = part[: mark.start()], part[mark.end() :].lstrip()
    goes_on = following[:1].islower()
    if goes_on and (mark[1] or mark[0].startswith(("..", "…"))):
        return False
    if not mark[0].startswith(".") or mark[0].startswith(".."):
        return True
    if _LIST_NUMBER.search(before):
        return False
    last = re.search(r"[\w.]*$", before)
    word = last[0].lower() if last else ""
    is_initial = len(word) == 1 and word.isalpha() and last is not None and last[0].isupper() and word != "i"
    return not (is_initial or word in _ABBREVIATIONS)
