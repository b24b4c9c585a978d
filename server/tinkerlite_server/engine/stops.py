"""Stops: when a completion is over.

A stop id ends it, a stop string ends it when the decoded completion first contains the string,
and so does the limit of tokens. The token that stops a completion is kept, whole: a token that
completes a stop string may go on past it, and cutting it would leave a token sequence that the
model never produced. The prompt's text does not count.

Text is looked at only where stop strings are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from tinkerlite.types import StopReason
from tinkerlite_server.errors import BadRequest

_REPLACEMENT = "\ufffd"
"""What decoders write for bytes that are no character, such as half of an emoji."""


class Detokenizer:
    """Tokens to text, special tokens included."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._lengths: dict[int, int | None] = {}

    def text(self, tokens: Sequence[int]) -> str:
        """The tokens' text; a character with missing bytes reads as U+FFFD."""
        return self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def length(self, token: int) -> int | None:
        """Characters that this token adds, or None if it begins or ends within one."""
        if token not in self._lengths:
            text = self.text([token])
            self._lengths[token] = None if _REPLACEMENT in text else len(text)
        return self._lengths[token]


class StopStrings:
    """The stop strings of one request.

    Raises:
        BadRequest: one of them is empty, which every text contains.
    """

    def __init__(self, strings: Sequence[str], detokenizer: Detokenizer) -> None:
        if "" in strings:
            raise BadRequest("a stop string is empty: leave it out, or give an empty list for no stops")
        self._strings = tuple(strings)
        self._detokenizer = detokenizer
        self._longest = max(map(len, strings))

    def ended_by_last(self, tokens: Sequence[int]) -> bool:
        """Whether the text of `tokens` contains a stop string, given that without the last it did not.

        Decodes only the last few tokens: the last, and enough before it to hold the longest stop
        string. The first of them begins with a whole character, so that they read as in full.
        """
        start, characters = len(tokens) - 1, 0
        # One character more than needed: some decoders drop the first token's leading blank.
        while start > 0 and characters < self._longest:
            start -= 1
            # Parts of characters count for nothing, so the loop never ends on one.
            characters += self._detokenizer.length(tokens[start]) or 0
        text = self._detokenizer.text(tokens[start:])
        return any(string in text for string in self._strings)


@dataclass(frozen=True, kw_only=True)
class StopRule:
    """What ends the completions of one request."""

    max_tokens: int
    stop_ids: frozenset[int]
    strings: StopStrings | None = None

    def reason(self, tokens: Sequence[int]) -> StopReason | None:
        """Why the last token ends the completion, or None if it goes on."""
        if tokens[-1] in self.stop_ids:
            return "stop"
        if self.strings is not None and self.strings.ended_by_last(tokens):
            return "stop"
        return "length" if len(tokens) >= self.max_tokens else None
