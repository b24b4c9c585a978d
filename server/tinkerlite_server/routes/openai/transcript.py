"""Transcript: a completion's text as its tokens come.

Bytes of a character that is not whole are held back until it is. So is an end of the text that a
stop string may begin with: what stops a completion is never part of its text.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from tinkerlite.types import SampledSequence, StopReason
from tinkerlite_server.engine.protocols import Tokenizer

Topk = list[tuple[int, float]]
"""Token ids and their logprobs, the likeliest first."""


@dataclass(frozen=True, kw_only=True)
class ScoredToken:
    """A token of the text, and what is known of it."""

    token: int
    logprob: float | None
    """None for the first token of a prompt, which follows nothing."""
    topk: Topk | None
    offset: int
    """Characters of the text before it."""


@dataclass(frozen=True)
class Piece:
    """What a completion has grown by: text that is final, and the tokens that begin in it."""

    text: str = ""
    tokens: list[ScoredToken] = field(default_factory=lambda: [])

    def __bool__(self) -> bool:
        return bool(self.text or self.tokens)


class Transcript:
    """One completion.

    Args:
        stop_ids: tokens that end it without being part of it.
        stop_strings: texts that do.
    """

    def __init__(self, tokenizer: Tokenizer, stop_ids: frozenset[int], stop_strings: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._stops = stop_strings
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""
        """Characters that may begin a stop string."""
        self._sent = 0
        self._tokens: deque[ScoredToken] = deque()
        """Those that begin at or after what was sent."""

    def add(self, token: int, logprob: float, topk: Topk, ends: StopReason | None) -> Piece:
        """The next token; what has become final with it.

        Args:
            ends: why the completion ends with it, if it does.
        """
        if ends == "stop" and token in self._stop_ids:
            return self._end()
        offset = self._sent + len(self._pending)
        self._tokens.append(ScoredToken(token=token, logprob=logprob, topk=topk, offset=offset))
        self._pending += self._characters.decode(self._tokenizer.token_bytes(token))
        if ends is None:
            return self._take(len(self._pending) - _may_begin_a_stop(self._pending, self._stops))
        return self._end(at_stop_string=ends == "stop")

    def _end(self, *, at_stop_string: bool = False) -> Piece:
        self._pending += self._characters.decode(b"", True)
        found = [self._pending.find(stop) for stop in self._stops] if at_stop_string else []
        cut = min((place for place in found if place >= 0), default=None)
        if cut is not None:
            return self._take(cut)
        # Tokens that add nothing, such as ids without a text, begin behind the last character.
        return Piece(self._pending, list(self._tokens))

    def _take(self, length: int) -> Piece:
        text, self._pending = self._pending[:length], self._pending[length:]
        self._sent += length
        tokens: list[ScoredToken] = []
        while self._tokens and self._tokens[0].offset < self._sent:
            tokens.append(self._tokens.popleft())
        return Piece(text, tokens)


def _may_begin_a_stop(text: str, stops: Sequence[str]) -> int:
    """The length of the longest end of the text that is the beginning of a stop string."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    ends = range(min(longest, len(text)), 0, -1)
    return next((length for length in ends if any(stop.startswith(text[-length:]) for stop in stops)), 0)


def whole_text(transcript: Transcript, sequence: SampledSequence) -> Piece:
    """A finished completion's text and tokens."""
    logprobs = sequence.logprobs or []
    topk = sequence.topk_logprobs or [None] * len(sequence.tokens)
    text: list[str] = []
    tokens: list[ScoredToken] = []
    for index, (token, logprob, row) in enumerate(zip(sequence.tokens, logprobs, topk, strict=True), 1):
        ends = sequence.stop_reason if index == len(sequence.tokens) else None
        piece = transcript.add(token, logprob, row or [], ends)
        text.append(piece.text)
        tokens += piece.tokens
    return Piece("".join(text), tokens)
