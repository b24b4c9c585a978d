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

from tinkerlite.types import StopReason
from tinkerlite_server.engine.protocols import Tokenizer
from tinkerlite_server.errors import BadRequest

_CONTINUATION = bytes(range(0x80, 0xC0))
"""The bytes of a character in UTF-8 that are not its first."""
_REST_OF_CHARACTER = 3
"""Most of them in one character."""


class StopStrings:
    """The stop strings of one request.

    Raises:
        BadRequest: one of them is empty, which every text contains.
    """

    def __init__(self, strings: Sequence[str], tokenizer: Tokenizer) -> None:
        if "" in strings:
            raise BadRequest("a stop string is empty: leave it out, or give an empty list for no stops")
        self._strings = tuple(strings)
        self._tokenizer = tokenizer
        self._longest_bytes = max(len(string.encode()) for string in strings)

    def ended_by_last(self, tokens: Sequence[int]) -> bool:
        """Whether the text of `tokens` contains a stop string, given that without the last it did not.

        Looks only at the last token, and at enough before it to hold the longest stop string.
        """
        last = self._tokenizer.token_bytes(tokens[-1])
        start, pieces, size = len(tokens) - 1, list[bytes](), 0
        while start > 0 and size < self._longest_bytes + _REST_OF_CHARACTER:
            start -= 1
            pieces.append(self._tokenizer.token_bytes(tokens[start]))
            size += len(pieces[-1])
        before = b"".join(reversed(pieces))
        if start > 0:  # what may be the rest of a character that begins further back
            before = before[:_REST_OF_CHARACTER].lstrip(_CONTINUATION) + before[_REST_OF_CHARACTER:]
        text = (before + last).decode("utf-8", "replace")
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
