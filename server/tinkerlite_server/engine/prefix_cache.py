"""Finished conversations, kept so that the next turn need not be read from its beginning.

Holds the keys and values of prompts with their completions, under the adapter that made them, the
least recently used going first. A prompt begins where a kept conversation left off, or somewhere in
its completion, else it is read whole: a request that is made again is computed again, in the same way,
and draws the same tokens in bfloat16 too, where rounding depends on the shape of a pass.
Prompts that are read in one pass share their beginnings without this (streams.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from weakref import WeakKeyDictionary

from tinkerlite_server.engine.attention import KeysValues
from tinkerlite_server.engine.lora import Adapter
from tinkerlite_server.engine.protocols import Ids
from tinkerlite_server.engine.streams import common_prefix


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
    """Of one base model.

    Args:
        max_bytes: what is kept stays within this; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bare: list[_Conversation] = []
        self._adapted: WeakKeyDictionary[Adapter, list[_Conversation]] = WeakKeyDictionary()
        """Freed with the adapter, which nobody can ask for again."""
        self._clock = count()

    @property
    def bytes(self) -> int:
        """What is kept now."""
        return sum(kept.bytes for kept in self._all())

    def find(self, adapter: Adapter | None, prompt: Ids) -> KeysValues | None:
        """Of the longest beginning of a prompt that goes on from a kept conversation; never of all of it."""
        best: _Conversation | None = None
        longest = 0
        for kept in self._of(adapter):
            common = min(common_prefix(kept.tokens, prompt), len(prompt) - 1)
            if common > longest and common >= kept.prompt_tokens:
                best, longest = kept, common
        if best is None:
            return None
        best.used = next(self._clock)
        return best.keys_values.first(longest)

    def make_room(self, bytes_: int) -> bool:
        """Let the least recently used go until so much can be kept. False, and none goes: it never can."""
        if bytes_ > self._max_bytes:
            return False
        total = self.bytes
        gone: set[_Conversation] = set()
        for kept in sorted(self._all(), key=lambda kept: kept.used):
            if total + bytes_ <= self._max_bytes:
                break
            gone.add(kept)
            total -= kept.bytes
        for conversations in (self._bare, *self._adapted.values()):
            conversations[:] = [kept for kept in conversations if kept not in gone]
        return True

    def keep(self, adapter: Adapter | None, tokens: Ids, prompt_tokens: int, keys_values: KeysValues) -> None:
        """Keep a conversation, of which the first `prompt_tokens` were the prompt, once there is room."""
        conversations = self._of(adapter)
        for kept in conversations:
            if kept.prompt_tokens == prompt_tokens and len(kept.tokens) == common_prefix(kept.tokens, tokens):
                conversations.remove(kept)
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

    def _of(self, adapter: Adapter | None) -> list[_Conversation]:
        return self._bare if adapter is None else self._adapted.setdefault(adapter, [])

    def _all(self) -> Iterator[_Conversation]:
        for conversations in (self._bare, *self._adapted.values()):
            yield from conversations
