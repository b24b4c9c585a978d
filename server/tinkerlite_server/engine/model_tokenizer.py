"""ModelTokenizer: a base model's way between text and tokens, and its chat template.

Text is put together from what each token adds to it, as bytes: a text that grows token by token
then never changes behind its end, and a character that is split over tokens is whole as soon as
its last byte is there. Decoding tokens one by one would write U+FFFD in its place, and some
decoders drop the first token's leading blank.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tinkerlite_server.engine.protocols import ChatMessage
from tinkerlite_server.errors import BadRequest

_REPLACEMENT = "\ufffd"
"""What decoders write for bytes that are no character, such as half of an emoji."""
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
"""How vocabularies of characters spell a single byte."""


class ModelTokenizer:
    """Implements `Tokenizer` over the files in a model's folder."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._folder = folder
        # The first call settles how the tokenizer pads and cuts (not at all); later ones only read,
        # so that threads can share it.
        self._anchor: int = self._tokenizer.encode("a", add_special_tokens=False)[-1]
        self._before = self._decode([self._anchor])
        self._bytes: dict[int, bytes] = {}

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        return self._tokenizer.encode(text, verbose=False)

    def encode_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """See `Tokenizer.encode_chat`."""
        if not self._tokenizer.chat_template:
            raise BadRequest(
                f"the model in {self._folder.name!r} has no chat template, so it cannot be sent messages; "
                "send it a prompt"
            )
        try:
            return self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception as error:  # a template is the model's own program: it may raise anything
            raise BadRequest(f"the model's chat template refuses these messages: {error}") from error

    def token_bytes(self, token: int) -> bytes:
        """See `Tokenizer.token_bytes`."""
        if token not in self._bytes:
            self._bytes[token] = self._find_bytes(token)
        return self._bytes[token]

    def text(self, tokens: Sequence[int]) -> str:
        """The text that these tokens add; bytes that are no character read as U+FFFD."""
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")

    def _find_bytes(self, token: int) -> bytes:
        # After another token, since some decoders drop the blank that begins a text.
        text = self._decode([self._anchor, token]).removeprefix(self._before)
        if _REPLACEMENT not in text:
            return text.encode()
        piece: str = self._tokenizer.convert_ids_to_tokens(token)
        if byte := _BYTE_TOKEN.fullmatch(piece):
            return bytes.fromhex(byte[1])
        if all(character in _byte_alphabet() for character in piece):
            return bytes(_byte_alphabet()[character] for character in piece)
        return text.encode()

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@cache
def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level vocabularies spell bytes."""
    return {character: byte for byte, character in bytes_to_unicode().items()}
