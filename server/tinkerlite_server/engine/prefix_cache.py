"""Finished conversations, kept so that the next turn need not be read from its beginning.

Holds the keys and values of prompts with their completions, by the weights that made them, the least
recently used going first. A prompt begins where a kept conversation left off, or somewhere in its
completion, else it is read whole: a request that is made again is computed again, in the same way, and
draws the same tokens in bfloat16 too, where rounding depends on the shape of a pass.
Prompts that are read in one pass share their beginnings without this (streams.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from weakref import WeakKeyDictionary

from tinkerlite_server.engine.attention import KeysValues
from tinkerlite_server.engine.base_model import BaseModel
from tinkerlite_server.engine.lora import Adapter
from tinkerlite_server.engine.protocols import Ids
from tinkerlite_server.engine.streams import common_prefix

LEAST_TOKENS = 16
"""Fewer are read again faster than they are looked up."""
LEAST_SHARE = 0.5
"""Of a prompt. What goes on from a kept conversation shares no rows with other prompts of its pass, which
may save more."""
MOST_PAIRS = 2**25
"""Of rows that are read and tokens that they look at: the mask of a prompt that is not read whole."""

Weights = Adapter | BaseModel
"""What made keys and values: the adapter or, without one, the model."""


@dataclass(eq=False, kw_only=True)
class _Conversation:
    tokens: Ids
    prompt_tokens: int
    """How many of them were the prompt."""
    keys_values: KeysValues
    bytes: int
    used: int
    """When it was last of use; larger is later."""


class PrefixCache:
    """Of all models of a sampler.

    Args:
        max_bytes: what is kept stays within this; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: WeakKeyDictionary[Weights, list[_Conversation]] = WeakKeyDictionary()
        """Freed with the weights, which nobody can ask for again."""
        self._clock = count()

    @property
    def bytes(self) -> int:
        """What is kept now."""
        return sum(each.bytes for each in self._all())

    def find(self, weights: Weights, prompt: Ids, most: int) -> KeysValues | None:
        """Of the longest beginning of a prompt that goes on from a kept conversation, if that is worth it.

        Args:
            most: tokens that need not be read; fewer than the prompt has.
        """
        best: _Conversation | None = None
        longest = 0
        for each in self._kept.get(weights, ()):
            common = min(common_prefix(each.tokens, prompt), len(prompt) - 1)
            if common > longest and common >= each.prompt_tokens:
                best, longest = each, common
        longest = min(longest, most)
        if best is None or not _is_worth_it(longest, len(prompt)):
            return None
        best.used = next(self._clock)
        return best.keys_values.first(longest)

    def make_room(self, bytes_: int) -> bool:
        """Let the least recently used go until so much can be kept. False, and none goes: it never can."""
        if bytes_ > self._max_bytes:
            return False
        total = self.bytes
        gone: set[_Conversation] = set()
        for each in sorted(self._all(), key=lambda each: each.used):
            if total + bytes_ <= self._max_bytes:
                break
            gone.add(each)
            total -= each.bytes
        for conversations in self._kept.values():
            conversations[:] = [each for each in conversations if each not in gone]
        return True

    def keep(self, weights: Weights, tokens: Ids, prompt_tokens: int, keys_values: KeysValues) -> None:
        """Keep a conversation, of which the first `prompt_tokens` were the prompt, once there is room."""
        conversations = self._kept.setdefault(weights, [])
        for each in conversations:
            if each.prompt_tokens == prompt_tokens and len(each.tokens) == common_prefix(each.tokens, tokens):
                conversations.remove(each)
                break
        conversations.append(
            _Conversation(
                tokens=tokens,
                prompt_tokens=prompt_tokens,
                keys_values=keys_values,
                bytes=keys_values.bytes,
                used=next(self._clock),
            )
        )

    def clear(self) -> None:
        """Keep nothing of what there is."""
        self._kept.clear()

    def _all(self) -> Iterator[_Conversation]:
        for conversations in self._kept.values():
            yield from conversations


def _is_worth_it(known: int, length: int) -> bool:
    pairs = (length - known) * length
    return known >= max(LEAST_TOKENS, LEAST_SHARE * length) and pairs <= MOST_PAIRS
